# SPDX-License-Identifier: Apache-2.0
# The files of host/ and their compiler flags.
# A new file in host/ is part of the library; main.c is the command.
file(GLOB RQ_HOST_SOURCES CONFIGURE_DEPENDS host/*.c)
list(REMOVE_ITEM RQ_HOST_SOURCES ${CMAKE_SOURCE_DIR}/host/main.c)
list(FILTER RQ_HOST_SOURCES EXCLUDE REGEX "/cmd_[a-z_0-9]*\\.c$") # the command's own files
list(FILTER RQ_HOST_SOURCES EXCLUDE REGEX "/backend_cuda[a-z_]*\\.c$") # need the CUDA toolkit: tests/cuda/cuda_tests.cmake
file(GLOB RQ_AVX2_SOURCES CONFIGURE_DEPENDS host/*_avx2.c)
file(GLOB RQ_AVX512_SOURCES CONFIGURE_DEPENDS host/*_avx512.c)
file(GLOB RQ_AVX512VNNI_SOURCES CONFIGURE_DEPENDS host/*_avx512vnni.c)
file(GLOB RQ_AVX512VBMI_SOURCES CONFIGURE_DEPENDS host/*_avx512vbmi.c)
# SIMD twins get their own flags and are picked at run time; nothing is built with -march=native (docs/style.md says why).
# tests/test_int8_dot.c tries the compiler under each of these sets.
set(RQ_AVX2_FLAGS -mavx2 -mfma -mf16c)
set(RQ_AVX512_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq ${RQ_AVX2_FLAGS} -mprefer-vector-width=512)
set(RQ_AVX512VNNI_FLAGS ${RQ_AVX512_FLAGS} -mavx512vnni) # for files of intrinsics alone: gcc 12's own VNNI loops are wrong
set(RQ_AVX512VBMI_FLAGS ${RQ_AVX512_FLAGS} -mavx512vbmi)
set_source_files_properties(${RQ_AVX2_SOURCES} PROPERTIES COMPILE_OPTIONS "${RQ_AVX2_FLAGS}")
set_source_files_properties(${RQ_AVX512_SOURCES} PROPERTIES COMPILE_OPTIONS "${RQ_AVX512_FLAGS}")
set_source_files_properties(${RQ_AVX512VNNI_SOURCES} PROPERTIES COMPILE_OPTIONS "${RQ_AVX512VNNI_FLAGS}")
set_source_files_properties(${RQ_AVX512VBMI_SOURCES} PROPERTIES COMPILE_OPTIONS "${RQ_AVX512VBMI_FLAGS}")

# Plain float loops of the quantizer: vectorised, with fused multiply-add where the clone has it. No fast-math: errno and
# traps are what vectorisers trip over, and nothing here reads either.
file(GLOB RQ_LOOP_SOURCES CONFIGURE_DEPENDS host/comp_*.c host/round_*.c)
set(RQ_LOOP_FLAGS -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast)
set_source_files_properties(${RQ_LOOP_SOURCES} PROPERTIES COMPILE_OPTIONS "${RQ_LOOP_FLAGS}")

# The quantizer of one matrix, from Gram matrices to codes: for programs that need no other library (RQ_KERNELS_ONLY). Without packed formats
# and models. bin/comp_alone is linked of these files alone in every build.
set(RQ_QUANTIZER_FILES
    "/host/(comp_[a-z_]*|round_[a-z0-9_]*|kmeans[a-z0-9_]*|device[a-z_]*|backend_cpu|backend_openblas|kernels|gem[mv]_[a-z0-9_]*|act_[a-z0-9_]*|rotate_hadamard|status|threads)[.]c")
set(RQ_NOT_QUANTIZER_FILES "/host/(comp_pack|act_steps)[.]c")
set(RQ_BACKEND_MODEL_FILES "/backend_cuda_(forward|rows|loss|decode|weights)[a-z_]*[.]c") # of backend_cuda*.c, those that need models
function(rq_add_quantizer target)
  set(sources ${RQ_HOST_SOURCES})
  list(FILTER sources INCLUDE REGEX ${RQ_QUANTIZER_FILES})
  list(FILTER sources EXCLUDE REGEX ${RQ_NOT_QUANTIZER_FILES})
  add_library(${target} STATIC ${sources})
  target_include_directories(${target} PUBLIC host)
  target_link_libraries(${target} PUBLIC Threads::Threads m ${CMAKE_DL_LIBS})
endfunction()
