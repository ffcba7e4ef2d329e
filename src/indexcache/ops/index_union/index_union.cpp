#include "indexcache/ops/index_union/index_union.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/StringUtil.h>

#include <algorithm>

#include "indexcache/base/error.h"
#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "indexcache/ops/tensor_check.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {
namespace {

void validate(const at::Tensor& indices, const at::Tensor& group_begin) {
  require_tensor(indices.dim() == 2 && indices.scalar_type() == at::kInt && indices.is_contiguous(),
                 "index_union: indices", "contiguous int32 [M, k]", indices);
  require_tensor(
      group_begin.dim() == 1 && group_begin.size(0) >= 1 && group_begin.scalar_type() == at::kInt &&
          group_begin.is_contiguous() && group_begin.device() == indices.device(),
      "index_union: group_begin", "contiguous int32 [G + 1] on indices' device", group_begin);
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
#ifdef INDEXCACHE_CUDA
  if (indices.is_cuda()) {
    if (k > kIndexUnionCudaMaxTopK) {
      throw expectation_error("index_union: k", fmt::format("at most {}", kIndexUnionCudaMaxTopK),
                              std::to_string(k));
    }
    const c10::DeviceGuard guard(indices.device());
    index_union_cuda(params, current_stream(indices.device()));
    return result;
  }
#endif
  throw expectation_error("index_union: indices", "CPU or CUDA tensors",
                          c10::str(indices.device()));
}

}  // namespace indexcache
