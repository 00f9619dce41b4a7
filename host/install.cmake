# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down: the command, both libraries, the public headers, a CMake package (requite::requite,
# requite::requite_static) and requite.pc. tests/check_install.py builds a program against each of them.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(RQ_PUBLIC_HEADERS rq.h rq_base.h rq_packed.h fmt_act.h fmt_grid.h fmt_ssvq.h fmt_vq.h fmt_w4a8.h) # tests/check_includes.py has them too
list(TRANSFORM RQ_PUBLIC_HEADERS PREPEND ${CMAKE_SOURCE_DIR}/host/)
set(RQ_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/requite)

install(FILES ${RQ_PUBLIC_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS requite RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
# Two export sets: who links the shared library needs none of its dependencies' development files.
install(TARGETS requite_shared EXPORT requite-shared
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_COMPONENT Development
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS requite_static EXPORT requite-static
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT requite-shared NAMESPACE requite:: DESTINATION ${RQ_CMAKE_DIR})
install(EXPORT requite-static NAMESPACE requite:: DESTINATION ${RQ_CMAKE_DIR})

configure_package_config_file(${CMAKE_SOURCE_DIR}/host/requite-config.cmake.in
  ${CMAKE_BINARY_DIR}/requite-config.cmake INSTALL_DESTINATION ${RQ_CMAKE_DIR})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_BINARY_DIR}/requite-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/requite-config.cmake ${CMAKE_BINARY_DIR}/requite-config-version.cmake
        DESTINATION ${RQ_CMAKE_DIR})

# Relative to the .pc file, so that a moved or staged tree keeps working.
file(RELATIVE_PATH RQ_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" RQ_PC_PREFIX ${RQ_PC_PREFIX})
if(CMAKE_DL_LIBS)
  set(RQ_PC_DL -l${CMAKE_DL_LIBS})
endif()
configure_file(${CMAKE_SOURCE_DIR}/host/requite.pc.in ${CMAKE_BINARY_DIR}/requite.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/requite.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# What `pip install ./python` lays down beside the package's own files (python/pyproject.toml); no part of a plain install.
install(FILES $<TARGET_FILE:requite_shared> DESTINATION . RENAME librequite.so COMPONENT python EXCLUDE_FROM_ALL)
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
add_custom_target(python_package DEPENDS requite_shared)
if(TARGET requite_torch)
  add_dependencies(python_package requite_torch)
endif()
