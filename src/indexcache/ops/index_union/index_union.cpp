#include "indexcache/ops/index_union/index_union.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/StringUtil.h>

#include <algorithm>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {
namespace {

void require(bool holds, const char* argument, const std::string& expected,
             const at::Tensor& found) {
  if (holds) return;
  throw expectation_error(
      fmt::format("index_union: {}", argument), expected,
      c10::str(found.scalar_type(), " ", found.sizes(), " on ", found.device()));
}

void validate(const at::Tensor& indices, const at::Tensor& group_begin) {
  require(indices.dim() == 2 && indices.scalar_type() == at::kInt && indices.is_contiguous(),
          "indices", "contiguous int32 [M, k]", indices);
  require(group_begin.dim() == 1 && group_begin.size(0) >= 1 &&
              group_begin.scalar_type() == at::kInt && group_begin.is_contiguous() &&
              group_begin.device() == indices.device(),
          "group_begin", "contiguous int32 [G + 1] on indices' device", group_begin);
}

// What only the host's own memory lets us see without waiting for a device.
void validate_values(const IndexUnionParams& p, std::int64_t num_queries) {
  for (std::int64_t g = 0; g < p.num_groups; ++g) {
    const std::int64_t begin = p.group_begin[g], end = p.group_begin[g + 1];
    if (begin < 0 || end < begin || end - begin > kGroupQueries || end > num_queries) {
      throw expectation_error(fmt::format("index_union: group {}", g),
                              fmt::format("0 to {} rows below {}", kGroupQueries, num_queries),
                              fmt::format("[{}, {})", begin, end));
    }
  }
  const std::int64_t count = num_queries * p.top_k;
  const auto* largest = std::max_element(p.indices, p.indices + count);
  if (count > 0 && *largest >= kUnionMaxKeys) {
    throw expectation_error("index_union: indices", fmt::format("ids below {}", kUnionMaxKeys),
                            std::to_string(*largest));
  }
}

}  // namespace

IndexUnion index_union(const at::Tensor& indices, const at::Tensor& group_begin) {
  validate(indices, group_begin);
  const std::int64_t groups = group_begin.size(0) - 1, k = indices.size(1);
  IndexUnion result{at::empty({groups, kGroupQueries * k}, indices.options()),
                    at::empty({groups}, indices.options())};
  const IndexUnionParams params = {.num_groups = groups,
                                   .group_begin = group_begin.const_data_ptr<std::int32_t>(),
                                   .top_k = k,
                                   .indices = indices.const_data_ptr<std::int32_t>(),
                                   .entry_stride = kGroupQueries * k,
                                   .entries = result.entries.mutable_data_ptr<std::int32_t>(),
                                   .counts = result.counts.mutable_data_ptr<std::int32_t>()};
  if (indices.is_cpu()) {
    validate_values(params, indices.size(0));
    index_union_cpu(params, torch_pool());
    return result;
  }
  throw InputError("index_union: expected CPU tensors: CUDA ones go to index_union_cuda");
}

}  // namespace indexcache
