# SPDX-License-Identifier: Apache-2.0
# Checks of the sources and of what was built, as tests. A check that exits with 77 was skipped, and its output says why.
option(RQ_LINT "Also test: clang-format, clang-tidy, cppcheck" OFF)
option(RQ_TEST_PIP "Also test: pip install ./python, which fetches what it needs and builds the library again" OFF)
option(RQ_TEST_PEERS "Also test: other tools open what `requite convert` writes (tests/test_peers_load.py says which must be installed)" OFF)
set(RQ_PEER_PYTHON "" CACHE STRING "RQ_TEST_PEERS: the Python that has them; empty: the one of the other tests")
set(RQ_PEER_FOLDERS "" CACHE STRING "RQ_TEST_PEERS: unpacked releases of tools that are not installed")
option(RQ_TEST_TORCH "Also test: pip install ./python beside PyTorch and transformers, which fetches gigabytes" OFF)
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
  # The Python package, in place; with RQ_TEST_PIP also from a fresh virtual environment.
  add_test(NAME test_python COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_python.py
           $<TARGET_FILE:requite_shared> $<TARGET_FILE:requite> ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(test_python PROPERTIES TIMEOUT 600 SKIP_RETURN_CODE 77 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
  # torch.ops.requite: with the Python that it was built for (RQ_TORCH); skipped without.
  set(RQ_TEST_TORCH_PYTHON ${Python3_EXECUTABLE})
  if(TARGET requite_torch)
    set(RQ_TEST_TORCH_PYTHON ${rq_torch_python})
  endif()
  add_test(NAME test_torch COMMAND ${RQ_TEST_TORCH_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_torch.py
           $<TARGET_FILE:requite_shared> $<TARGET_FILE:requite> ${CMAKE_CURRENT_SOURCE_DIR})
  add_test(NAME test_torch_example COMMAND ${RQ_TEST_TORCH_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_torch_example.py ${CMAKE_BINARY_DIR})
  # Fine-tuning in PyTorch; without the operators.
  add_test(NAME test_finetune COMMAND ${RQ_TEST_TORCH_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_finetune.py
           $<TARGET_FILE:requite_shared> $<TARGET_FILE:requite> ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(test_torch test_torch_example test_finetune PROPERTIES TIMEOUT 900 SKIP_RETURN_CODE 77
                       ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
  if(RQ_TEST_PIP)
    add_test(NAME test_python_pip COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_python_pip.py)
    set_tests_properties(test_python_pip PROPERTIES TIMEOUT 1800 SKIP_RETURN_CODE 77 LABELS heavy PROCESSORS 2
                         ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
  endif()
  if(RQ_TEST_TORCH)
    add_test(NAME test_torch_pip COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_torch_pip.py $<TARGET_FILE:requite> ${CMAKE_BINARY_DIR})
    set_tests_properties(test_torch_pip PROPERTIES TIMEOUT 3600 SKIP_RETURN_CODE 77 LABELS heavy PROCESSORS 2
                         ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
  endif()
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
  add_test(NAME test_convert COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_convert.py $<TARGET_FILE:requite>
           ${CMAKE_CURRENT_SOURCE_DIR})
  set_tests_properties(test_convert PROPERTIES TIMEOUT 600 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
if(RQ_TEST_PEERS AND NOT RQ_FUZZ)
  if(NOT RQ_PEER_PYTHON)
    set(RQ_PEER_PYTHON Python3::Interpreter)
  endif()
  add_test(NAME test_peers_load COMMAND ${RQ_PEER_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_peers_load.py $<TARGET_FILE:requite>
           ${CMAKE_CURRENT_SOURCE_DIR} ${RQ_PEER_FOLDERS})
  set_tests_properties(test_peers_load PROPERTIES TIMEOUT 1800 SKIP_RETURN_CODE 77 LABELS heavy PROCESSORS 2
                       ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
# What quantizing on given devices is planned to take.
if(NOT RQ_FUZZ)
  add_test(NAME test_cost COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_cost.py $<TARGET_FILE:requite>)
  set_tests_properties(test_cost PROPERTIES ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
# Several processes on one model.
if(NOT RQ_FUZZ AND MPI_C_FOUND AND RQ_MPI)
  add_test(NAME test_ranks COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/test_ranks.py $<TARGET_FILE:requite>
           ${CMAKE_CURRENT_SOURCE_DIR} ${MPIEXEC_EXECUTABLE})
  set_tests_properties(test_ranks PROPERTIES TIMEOUT 1200 SKIP_RETURN_CODE 77 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
