# SPDX-License-Identifier: Apache-2.0
# The simulator: libgpusim.a holds the PTX interpreter and the stand-ins for libcudart and libcuda. The opcode families (op_*.c)
# are compiled twice, plain and for AVX-512; the processor's is picked when a module is loaded.
set(RQ_GPUSIM_DIR ${CMAKE_CURRENT_LIST_DIR})
file(GLOB RQ_GPUSIM_OPS CONFIGURE_DEPENDS ${RQ_GPUSIM_DIR}/op_*.c)
file(GLOB RQ_GPUSIM_SOURCES CONFIGURE_DEPENDS ${RQ_GPUSIM_DIR}/*.c)
list(REMOVE_ITEM RQ_GPUSIM_SOURCES ${RQ_GPUSIM_OPS})
file(GLOB RQ_GPUSIM_LIBRARIES CONFIGURE_DEPENDS ${RQ_GPUSIM_DIR}/sim_*.c) # cuBLAS, cuSOLVER, NCCL: libraries of their own
list(REMOVE_ITEM RQ_GPUSIM_SOURCES ${RQ_GPUSIM_LIBRARIES})

# The interpreter is what takes the time: optimised also in debug builds. No errno, no traps: nobody reads either.
set(RQ_GPUSIM_FLAGS -O3 -fno-math-errno -fno-trapping-math)
add_library(gpusim_plain OBJECT ${RQ_GPUSIM_OPS})
target_compile_options(gpusim_plain PRIVATE ${RQ_GPUSIM_FLAGS})
set(RQ_GPUSIM_OBJECTS $<TARGET_OBJECTS:gpusim_plain>)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_library(gpusim_avx512 OBJECT ${RQ_GPUSIM_OPS})
  target_compile_definitions(gpusim_avx512 PRIVATE GS_ISA=avx512)
  target_compile_options(gpusim_avx512 PRIVATE ${RQ_GPUSIM_FLAGS} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma
                         -mf16c -mprefer-vector-width=512)
  list(APPEND RQ_GPUSIM_OBJECTS $<TARGET_OBJECTS:gpusim_avx512>)
endif()
add_library(gpusim STATIC ${RQ_GPUSIM_SOURCES} ${RQ_GPUSIM_OBJECTS})
target_compile_options(gpusim PRIVATE -O2 -fno-math-errno -fno-trapping-math)
target_include_directories(gpusim PUBLIC ${RQ_GPUSIM_DIR})
target_link_libraries(gpusim PUBLIC Threads::Threads m ${CMAKE_DL_LIBS})
foreach(target gpusim gpusim_plain gpusim_avx512)
  if(TARGET ${target})
    set_target_properties(${target} PROPERTIES C_VISIBILITY_PRESET default)
    target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  endif()
endforeach()
