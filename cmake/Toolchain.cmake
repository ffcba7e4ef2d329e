set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
# Programs too, where CMake would say -fPIE: they share precompiled headers with the libraries.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fPIC> $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fPIC>)

find_program(CCACHE ccache)
if(CCACHE)
  # Without the first ccache passes by what uses precompiled headers; the second makes paths relative, so that the presets'
  # build folders, in which these stand, share what they have in common.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros
    CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} ${CCACHE})
endif()

add_library(indexcache_flags INTERFACE)
target_compile_options(indexcache_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wno-unknown-pragmas>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror;--Werror=all-warnings>)
if(INDEXCACHE_SANITIZE)
  add_compile_options(-fsanitize=${INDEXCACHE_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${INDEXCACHE_SANITIZE})
  # The checks that sanitizers insert keep GCC from seeing initialisations: it then warns of libstdc++'s own std::regex.
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(indexcache_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
  endif()
  # Every undefined-behaviour finding ends the program, so that a test or a fuzz run fails on it.
  if(INDEXCACHE_SANITIZE MATCHES undefined)
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# Test programs and the command: they arrange calls into libraries that are optimised, and optimising them was half of what
# building them took.
add_library(indexcache_unoptimised INTERFACE)
target_compile_options(indexcache_unoptimised INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-O0>)

if(INDEXCACHE_CUDA)
  # nvcc is often installed beside the PATH.
  find_program(CMAKE_CUDA_COMPILER nvcc PATHS /usr/local/cuda/bin REQUIRED)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25.1 does not know that nvcc has it
  endif()
  set(CMAKE_CUDA_STANDARD 20)
endif()

# What the results of a bench were measured at; as of the last configure.
execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} describe --always --dirty OUTPUT_VARIABLE INDEXCACHE_COMMIT
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
