# SPDX-License-Identifier: Apache-2.0
# torch.ops.requite.*: requite_torch.so, built where a PyTorch of 2.10 or later is found. It is of LibTorch's stable ABI: the PyTorch that
# it is built with need not be the one it runs with, and no Python's interface is in it.
#
#   RQ_TORCH         AUTO: where PyTorch is found; ON: must be; OFF
#   RQ_TORCH_CUDA    ON: also requite_torch_cuda.so, their CUDA kernels; needs nvcc and a PyTorch that is built for CUDA, and takes a while
#   RQ_TORCH_PYTHON  the interpreter that is asked where its torch is; it is not imported
set(RQ_TORCH_PYTHON "" CACHE FILEPATH "The Python whose PyTorch torch.ops.requite is built with")
set(rq_torch_python "${RQ_TORCH_PYTHON}")
if(NOT rq_torch_python)
  set(rq_torch_python "${Python_EXECUTABLE}") # scikit-build-core's: the one that the package is installed for
endif()
if(NOT rq_torch_python)
  set(rq_torch_python python3)
endif()

# -I: pip's build isolation hides what is installed through PYTHONPATH, and nothing of torch is wanted but headers and names.
execute_process(COMMAND "${rq_torch_python}" -I -c "import importlib.util as u, os
spec = u.find_spec('torch')
folder = os.path.dirname(spec.origin) if spec and spec.origin else ''
version = {}
if folder: exec(open(os.path.join(folder, 'version.py'), encoding='utf-8').read(), version)
print(folder, version.get('__version__', '').split('+')[0], sep=';')"
  OUTPUT_VARIABLE rq_torch OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE rq_torch_result)
set(rq_torch_folder "")
if(rq_torch_result EQUAL 0)
  list(GET rq_torch 0 rq_torch_folder)
endif()
set(rq_torch_why "")
if(NOT rq_torch_folder)
  set(rq_torch_why "${rq_torch_python} has no torch")
else()
  list(GET rq_torch 1 rq_torch_version)
  if(rq_torch_version VERSION_LESS 2.10)
    set(rq_torch_why "torch ${rq_torch_version} is older than 2.10, whose stable ABI is needed")
  else()
    include(CheckLanguage)
    check_language(CXX)
    if(NOT CMAKE_CXX_COMPILER)
      set(rq_torch_why "there is no C++ compiler")
    endif()
  endif()
endif()
if(rq_torch_why)
  if(RQ_TORCH STREQUAL "ON")
    message(FATAL_ERROR "RQ_TORCH is ON, but ${rq_torch_why}")
  endif()
  message(STATUS "torch.ops.requite is not built: ${rq_torch_why}")
  return()
endif()
message(STATUS "torch.ops.requite: with torch ${rq_torch_version}")

enable_language(CXX)
file(GLOB rq_torch_repack CONFIGURE_DEPENDS host/repack_*.c)
add_library(requite_torch MODULE python/csrc/schemas.cpp python/csrc/ops_cpu.cpp python/csrc/tiles.cpp ${rq_torch_repack})
function(rq_torch_extension target)
  set_target_properties(${target} PROPERTIES PREFIX "" CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
                        CXX_VISIBILITY_PRESET hidden BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "")
  target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/host)
  target_include_directories(${target} SYSTEM PRIVATE ${rq_torch_folder}/include)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow>")
  if(RQ_WERROR)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Werror>")
  endif()
endfunction()
rq_torch_extension(requite_torch)
install(TARGETS requite_torch LIBRARY DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
# Both are in the process before this is loaded, and found there by name: PyTorch by its import, librequite.so.0 by python/requite.
target_link_libraries(requite_torch PRIVATE requite_shared ${rq_torch_folder}/lib/libtorch_cpu.so)

# PyTorch puts a CUDA run time of its own into the process, where names are looked up first: ours are bound to ours.
set(rq_torch_own_cuda LINKER:-Bsymbolic LINKER:--exclude-libs,ALL)
# The kernels are of the CUDA tests' making (RQ_CUDA, which this turns on); CUDA's run time is linked in, so that PyTorch's may be another.
function(rq_torch_add_cuda)
  if(NOT EXISTS ${rq_torch_folder}/lib/libtorch_cuda.so)
    message(FATAL_ERROR "RQ_TORCH_CUDA is ON, but torch ${rq_torch_version} is not built for CUDA")
  endif()
  add_library(requite_torch_cuda MODULE python/csrc/ops_cuda.cpp)
  rq_torch_extension(requite_torch_cuda)
  target_link_options(requite_torch_cuda PRIVATE ${rq_torch_own_cuda})
  set_target_properties(requite_torch_cuda PROPERTIES CUDA_RUNTIME_LIBRARY None LINKER_LANGUAGE CXX) # the one below; no device code is linked
  target_link_libraries(requite_torch_cuda PRIVATE requite_shared requite_cuda CUDA::cudart_static ${rq_torch_folder}/lib/libtorch_cpu.so
                        ${rq_torch_folder}/lib/libtorch_cuda.so)
  install(TARGETS requite_torch_cuda LIBRARY DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
  add_dependencies(python_package requite_torch_cuda)
endfunction()

# The same for tests: the kernels in the simulator, on tensors of the CPU (tests/test_torch.py).
function(rq_torch_add_sim)
  add_library(requite_torch_sim MODULE python/csrc/ops_cuda.cpp)
  rq_torch_extension(requite_torch_sim)
  target_link_options(requite_torch_sim PRIVATE ${rq_torch_own_cuda})
  set_target_properties(requite_torch_sim PROPERTIES CUDA_RUNTIME_LIBRARY None LINKER_LANGUAGE CXX)
  target_compile_definitions(requite_torch_sim PRIVATE REQUITE_SIM)
  target_link_libraries(requite_torch_sim PRIVATE requite_shared requite_cuda_sim gpusim
                        ${rq_torch_folder}/lib/libtorch_cpu.so)
endfunction()
