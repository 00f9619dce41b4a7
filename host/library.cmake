# SPDX-License-Identifier: Apache-2.0
# The library, the command and what they need. Not part of a build of the CUDA kernels alone (RQ_KERNELS_ONLY).
find_package(PkgConfig REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

include(${CMAKE_CURRENT_LIST_DIR}/sources.cmake)

add_library(requite_objects OBJECT ${RQ_HOST_SOURCES})
target_include_directories(requite_objects PUBLIC host)
target_link_libraries(requite_objects PUBLIC Threads::Threads PkgConfig::JANSSON PkgConfig::PCRE2 PkgConfig::UTF8PROC
                      PkgConfig::XXHASH m ${CMAKE_DL_LIBS})
# Both libraries are made of the same objects. Tests and the command link the static one, which shows them everything; the
# shared one exports what rq.h declares RQ_API and nothing else (tests/check_symbols.py).
add_library(requite_static STATIC)
target_link_libraries(requite_static PUBLIC $<BUILD_INTERFACE:requite_objects>
                      INTERFACE $<INSTALL_INTERFACE:Threads::Threads> $<INSTALL_INTERFACE:PkgConfig::JANSSON>
                      $<INSTALL_INTERFACE:PkgConfig::PCRE2> $<INSTALL_INTERFACE:PkgConfig::UTF8PROC>
                      $<INSTALL_INTERFACE:PkgConfig::XXHASH> $<INSTALL_INTERFACE:m> $<INSTALL_INTERFACE:${CMAKE_DL_LIBS}>)
# comp_book.c asks for it weakly, for programs without packed formats; that alone takes nothing out of an archive.
target_link_options(requite_static INTERFACE LINKER:--undefined=rq_result_values)
add_library(requite_shared SHARED)
target_link_libraries(requite_shared PRIVATE requite_objects)
target_include_directories(requite_shared INTERFACE $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/host>)
set_target_properties(requite_static requite_shared PROPERTIES OUTPUT_NAME requite)
set_target_properties(requite_shared PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0 EXPORT_NAME requite)

if(EXISTS ${CMAKE_SOURCE_DIR}/host/main.c)
  file(GLOB RQ_COMMAND_SOURCES CONFIGURE_DEPENDS host/cmd_*.c)
  add_executable(requite host/main.c ${RQ_COMMAND_SOURCES})
  target_link_libraries(requite PRIVATE requite_static)
  # Several processes on one model (cmd_ranks.c): the command alone is linked with MPI, the library never.
  set(RQ_MPI AUTO CACHE STRING "Ranks through MPI: ON, OFF, or AUTO (where MPI is found, and no sanitizer is in use)")
  if(RQ_MPI STREQUAL "ON")
    find_package(MPI REQUIRED COMPONENTS C)
  elseif(RQ_MPI STREQUAL "AUTO" AND NOT RQ_SANITIZE)
    find_package(MPI QUIET COMPONENTS C)
  endif()
  function(rq_add_mpi target)
    if(MPI_C_FOUND AND RQ_MPI)
      target_compile_definitions(${target} PRIVATE RQ_HAVE_MPI)
      target_link_libraries(${target} PRIVATE MPI::MPI_C)
    endif()
  endfunction()
  rq_add_mpi(requite)
endif()
