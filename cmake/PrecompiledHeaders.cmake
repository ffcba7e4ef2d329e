# Headers that cost most of a build, compiled once a build folder: libtorch's tensor, and with it what most sources include.
# Sources still include what they use: INDEXCACHE_PRECOMPILE=OFF builds them without.
option(INDEXCACHE_PRECOMPILE "Precompile libtorch's headers" ON)

set(INDEXCACHE_COMMON_HEADERS <ATen/core/Tensor.h> <ATen/TensorOperators.h> <fmt/format.h> <nlohmann/json.hpp>
  <algorithm> <filesystem> <functional> <map> <memory> <optional> <string> <vector>)

# indexcache_precompiled(NAME HEADERS header... LIBRARIES target...): a target that holds them. Those that use it must define
# the macros that it defines, so it links no library that they do not.
function(indexcache_precompiled name)
  cmake_parse_arguments(precompiled "" "" "HEADERS;LIBRARIES" ${ARGN})
  file(WRITE ${CMAKE_BINARY_DIR}/${name}.cpp "")
  add_library(${name} OBJECT ${CMAKE_BINARY_DIR}/${name}.cpp)
  target_link_libraries(${name} PRIVATE indexcache_flags indexcache_torch fmt::fmt nlohmann_json::nlohmann_json
    ${precompiled_LIBRARIES})
  target_precompile_headers(${name} PRIVATE ${precompiled_HEADERS})
endfunction()

if(INDEXCACHE_PRECOMPILE)
  indexcache_precompiled(indexcache_library_headers HEADERS ${INDEXCACHE_COMMON_HEADERS})
  indexcache_precompiled(indexcache_test_headers HEADERS ${INDEXCACHE_COMMON_HEADERS} <gmock/gmock.h> <gtest/gtest.h>
    LIBRARIES indexcache_unoptimised GTest::gtest_main GTest::gmock rapidcheck_gtest)
  indexcache_precompiled(indexcache_command_headers HEADERS ${INDEXCACHE_COMMON_HEADERS} <CLI/CLI.hpp>
    LIBRARIES indexcache_unoptimised CLI11::CLI11)
endif()

# Sources that must not see Torch in rooms that do: their names say so (tools/check_arrows.py).
set(INDEXCACHE_WITHOUT_TORCH "(_ref|_cpu|_highway|_avx512_bf16)\\.cpp$|\\.cu$")

# A target whose sources see Torch.
function(indexcache_use_precompiled target headers)
  if(NOT TARGET ${headers})
    return()
  endif()
  target_precompile_headers(${target} REUSE_FROM ${headers})
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    if(source MATCHES "${INDEXCACHE_WITHOUT_TORCH}")
      set_source_files_properties(${source} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()
