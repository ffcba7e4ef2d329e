# Debian packages (installed by ./setup).
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(GTest REQUIRED)
find_package(rapidcheck REQUIRED)
find_package(Threads REQUIRED)
find_package(LibLZMA REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)

# libtorch out of the PyPI wheel. Imported targets of our own: find_package(Torch) needs a newer CMake as soon as nvcc
# is on the PATH, and refuses this wheel where nvcc is missing.
set(INDEXCACHE_TORCH_ROOT "" CACHE PATH "The torch package's folder; default: the one in .venv")
if(NOT INDEXCACHE_TORCH_ROOT)
  file(GLOB torch_candidates ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  list(LENGTH torch_candidates torch_count)
  if(NOT torch_count EQUAL 1)
    message(FATAL_ERROR "torch not found under ${CMAKE_SOURCE_DIR}/.venv: run ./setup first, or set INDEXCACHE_TORCH_ROOT")
  endif()
  set(INDEXCACHE_TORCH_ROOT ${torch_candidates})
endif()

add_library(indexcache_torch INTERFACE)
# The wheel's include folder carries a newer fmt than the library we link: ours has to be found first.
get_target_property(fmt_include fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/fmt_first)
file(CREATE_LINK ${fmt_include}/fmt ${CMAKE_BINARY_DIR}/fmt_first/fmt SYMBOLIC)
target_include_directories(indexcache_torch SYSTEM INTERFACE ${CMAKE_BINARY_DIR}/fmt_first)
target_include_directories(indexcache_torch SYSTEM INTERFACE
  ${INDEXCACHE_TORCH_ROOT}/include ${INDEXCACHE_TORCH_ROOT}/include/torch/csrc/api/include)
target_link_directories(indexcache_torch INTERFACE ${INDEXCACHE_TORCH_ROOT}/lib)
# at::parallel_for is a template over OpenMP: without the flag it runs serially. The library is the wheel's own libgomp
# (same name, found first through the rpath), so that a process has one pool of threads.
target_compile_options(indexcache_torch INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fopenmp>)
target_link_libraries(indexcache_torch INTERFACE torch_cpu c10 $<$<CXX_COMPILER_ID:GNU>:gomp>)
target_link_options(indexcache_torch INTERFACE -Wl,-rpath,${INDEXCACHE_TORCH_ROOT}/lib)
if(INDEXCACHE_CUDA)
  # --no-as-needed: nothing refers to torch_cuda by name; its kernels register themselves when it is loaded. Its own
  # dependencies are found at run time through its rpath, so the linker need not resolve them.
  target_link_options(indexcache_torch INTERFACE -Wl,--no-as-needed -Wl,--allow-shlib-undefined)
  target_link_libraries(indexcache_torch INTERFACE torch_cuda c10_cuda torch)
endif()

# NCCL's header, of the version that torch_cuda was built with; the library is torch_cuda's own dependency.
add_library(indexcache_nccl INTERFACE)
if(INDEXCACHE_CUDA)
  find_path(INDEXCACHE_NCCL_INCLUDE nccl.h PATHS ${INDEXCACHE_TORCH_ROOT}/../nvidia/nccl/include NO_DEFAULT_PATH REQUIRED)
  target_include_directories(indexcache_nccl SYSTEM INTERFACE
    ${INDEXCACHE_NCCL_INCLUDE} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
endif()

# The ceiling that benches of kernels print beside their rates; nothing else calls cuBLAS itself.
add_library(indexcache_cublas INTERFACE)
if(INDEXCACHE_CUDA)
  find_library(INDEXCACHE_CUBLAS cublas HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES}
    ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}/../lib64 REQUIRED)
  find_library(INDEXCACHE_CUBLASLT cublasLt HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES}
    ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}/../lib64 REQUIRED)
  target_link_libraries(indexcache_cublas INTERFACE ${INDEXCACHE_CUBLAS} ${INDEXCACHE_CUBLASLT})
endif()
