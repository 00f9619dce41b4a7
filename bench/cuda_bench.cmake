# SPDX-License-Identifier: Apache-2.0
# The CUDA benchmarks: a new bench_*.cu is bin/gpu/bench_* for a GPU (RQ_CUDA) and bin/sim/bench_* for the simulator
# (RQ_GPUSIM), where it is only checked and counted, not timed. Included by the top after tests/cuda/cuda_tests.cmake, whose
# functions it uses. cuBLAS is a baseline: without it those rows are left out.
function(rq_add_blas target)
  set(all TRUE)
  foreach(library ${ARGN})
    if(NOT TARGET ${library})
      set(all FALSE)
    endif()
  endforeach()
  if(all)
    target_link_libraries(${target} PRIVATE ${ARGN})
    target_compile_definitions(${target} PRIVATE RQ_HAVE_CUBLAS)
  endif()
endfunction()

file(GLOB RQ_CUDA_BENCH_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/bench_*.cu)
foreach(source ${RQ_CUDA_BENCH_SOURCES})
  get_filename_component(name ${source} NAME_WE)
  rq_cuda_libraries(libraries gpu_there ${source} gpu)
  rq_cuda_libraries(libraries sim_there ${source} sim)
  if(RQ_CUDA AND gpu_there)
    rq_add_gpu_program(${source})
    if(TARGET gpu_${name})
      rq_add_blas(gpu_${name} CUDA::cublas CUDA::cublasLt)
    endif()
  endif()
  if(RQ_GPUSIM AND sim_there)
    rq_add_sim_program(${source})
    if(TARGET sim_${name})
      rq_add_blas(sim_${name} gpusim_cublas)
      if(RQ_BUILD_TESTS)
        add_test(NAME sim_${name} COMMAND sim_${name} --check)
        set_tests_properties(sim_${name} PROPERTIES LABELS gpusim TIMEOUT 600)
      endif()
    endif()
  endif()
endforeach()

# Plain C that bench_quantize has too.
foreach(target gpu_bench_quantize_cuda sim_bench_quantize_cuda)
  if(TARGET ${target})
    target_sources(${target} PRIVATE ${CMAKE_CURRENT_LIST_DIR}/quantize_ops.c)
  endif()
endforeach()

# bench_gemv: what it says, through bin/bench_gemv too where there is one.
if(TARGET sim_bench_gemv_cuda AND RQ_BUILD_TESTS)
  add_test(NAME sim_bench_gemv_records
           COMMAND Python3::Interpreter ${CMAKE_SOURCE_DIR}/tests/cuda/test_bench_gemv.py ${CMAKE_BINARY_DIR})
  set_tests_properties(sim_bench_gemv_records PROPERTIES LABELS gpusim TIMEOUT 1200 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
