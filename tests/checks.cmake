# SPDX-License-Identifier: Apache-2.0
# Checks of the sources and of what was built, as tests. A check that exits with 77 was skipped, and its output says why.
option(RQ_LINT "Also test: clang-format, clang-tidy, cppcheck" OFF)
find_package(Python3 3.9 REQUIRED COMPONENTS Interpreter)

function(rq_add_check name)
  add_test(NAME ${name} COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/${name}.py ${ARGN})
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 LABELS check ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endfunction()

# Sanitizers add their own symbols, and nobody installs such a build.
if(NOT RQ_SANITIZE AND NOT RQ_FUZZ)
  rq_add_check(check_includes)
  rq_add_check(check_spdx)
  rq_add_check(check_docs $<TARGET_FILE:requite>)
  rq_add_check(check_adding ${CMAKE_BINARY_DIR} ${CMAKE_C_COMPILER})
  rq_add_check(check_symbols $<TARGET_FILE:requite_shared> $<TARGET_FILE:requite_static>)
  rq_add_check(check_install ${CMAKE_BINARY_DIR} ${CMAKE_C_COMPILER})
endif()
if(RQ_LINT)
  rq_add_check(check_format)
  rq_add_check(check_tidy ${CMAKE_BINARY_DIR})
  rq_add_check(check_cppcheck)
  set_tests_properties(check_tidy check_cppcheck PROPERTIES PROCESSORS 2)
endif()
# The command end to end, under sanitizers too.
if(NOT RQ_FUZZ)
  add_test(NAME test_command COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_command.py $<TARGET_FILE:requite>
           ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(test_command PROPERTIES TIMEOUT 900 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
# Several processes on one model.
if(NOT RQ_FUZZ AND MPI_C_FOUND AND RQ_MPI)
  add_test(NAME test_ranks COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_ranks.py $<TARGET_FILE:requite>
           ${CMAKE_CURRENT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
  set_tests_properties(test_ranks PROPERTIES TIMEOUT 1200 SKIP_RETURN_CODE 77 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
