# SPDX-License-Identifier: Apache-2.0
# A new fuzz_<name>.c with a corpus in data/fuzz/<name>/ is a plain test over that corpus, and with RQ_FUZZ (clang) a
# libFuzzer program as well: build/bin/fuzz_<name> data/fuzz/<name>
option(RQ_FUZZ "Build the libFuzzer programs (needs clang)" OFF)
if(RQ_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "RQ_FUZZ needs clang, not ${CMAKE_C_COMPILER_ID}")
  endif()
  # The library is instrumented too; everything that links it then needs the sanitizers' run time.
  target_compile_options(requite_objects PUBLIC -fsanitize=fuzzer-no-link,address,undefined
                         -fno-sanitize-recover=undefined)
  target_link_options(requite_objects PUBLIC -fsanitize=address,undefined)
  # No reader runs the matrix kernels, and clang 14 needs minutes to instrument each of them.
  file(GLOB kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/host/gemv_*_avx*.c)
  set_property(SOURCE ${kernels} DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=all)
  # Kernels meet no file bytes that a loader has not checked, and clang needs many minutes for them when instrumented.
  file(GLOB RQ_SIMD_KERNELS ${CMAKE_SOURCE_DIR}/host/gem*_avx2.c ${CMAKE_SOURCE_DIR}/host/gem*_avx512.c)
  set_property(SOURCE ${RQ_SIMD_KERNELS} TARGET_DIRECTORY requite_objects APPEND PROPERTY COMPILE_OPTIONS
               -fno-sanitize=all)
endif()

file(GLOB RQ_FUZZ_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/fuzz_*.c)
list(REMOVE_ITEM RQ_FUZZ_SOURCES ${CMAKE_CURRENT_LIST_DIR}/fuzz_corpus_main.c)
add_custom_target(fuzz_programs)
foreach(source ${RQ_FUZZ_SOURCES})
  get_filename_component(name ${source} NAME_WE)
  string(REPLACE "fuzz_" "" target ${name})
  add_executable(${name}_corpus ${source} ${CMAKE_CURRENT_LIST_DIR}/fuzz_corpus_main.c)
  target_link_libraries(${name}_corpus PRIVATE requite_static)
  add_dependencies(fuzz_programs ${name}_corpus)
  add_test(NAME ${name}_corpus COMMAND ${name}_corpus ${CMAKE_CURRENT_LIST_DIR}/data/fuzz/${target})
  if(RQ_FUZZ)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE requite_static)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_dependencies(fuzz_programs ${name})
  endif()
endforeach()
