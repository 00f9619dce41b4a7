# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down of the kernels in a build with RQ_CUDA: librequite_cuda.a, its headers, requite_cuda.pc and the component
# cuda of the CMake package (requite::cuda). The rest is host/install.cmake's. tests/check_install.py links C programs with it.
set(RQ_CUDA_HEADERS host/fmt_tile.h host/rq_repack.h cuda/rq_cuda.h cuda/rq_cuda_hadamard.h) # tests/check_includes.py has them too
list(TRANSFORM RQ_CUDA_HEADERS PREPEND ${CMAKE_SOURCE_DIR}/)
install(FILES ${RQ_CUDA_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS requite_cuda EXPORT requite-cuda
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT requite-cuda NAMESPACE requite:: DESTINATION ${RQ_CMAKE_DIR})
# The user's program may be plain C: of what nvcc makes it needs the CUDA run time and C++'s.
set_target_properties(requite_cuda PROPERTIES EXPORT_NAME cuda)
target_link_libraries(requite_cuda INTERFACE $<INSTALL_INTERFACE:CUDA::cudart_static> $<INSTALL_INTERFACE:stdc++>)

configure_file(${CMAKE_CURRENT_LIST_DIR}/requite_cuda.pc.in ${CMAKE_BINARY_DIR}/requite_cuda.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/requite_cuda.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
