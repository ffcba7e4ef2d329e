#include "indexcache/ops/index_topk/index_topk.h"

#include <ATen/ops/empty.h>

#include <limits>
#include <optional>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"
#include "indexcache/ops/index_topk/index_topk_fused.h"
#include "indexcache/ops/index_topk/index_topk_params.h"
#include "indexcache/ops/tensor_check.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {
namespace {

void validate(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
              const at::Tensor& start, const at::Tensor& end) {
  require_tensor(q.dim() == 3 && q.is_contiguous() && q.size(1) > 0 && q.size(2) > 0 &&
                     (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16),
                 "index_topk: q", "a contiguous fp32 or bf16 tensor [M, H, D] with H, D >= 1", q);
  require_tensor(
      keys.dim() == 2 && keys.size(1) == q.size(2) && keys.scalar_type() == q.scalar_type() &&
          keys.device() == q.device() && (keys.size(1) == 1 || keys.stride(1) == 1),
      "index_topk: keys",
      fmt::format("[N, {}] with contiguous rows, dtype and device of q", q.size(2)), keys);
  require_tensor(keys.size(0) <= std::numeric_limits<std::int32_t>::max(), "index_topk: keys",
                 "at most 2^31 - 1 rows", keys);
  require_tensor(weights.dim() == 2 && weights.size(0) == q.size(0) &&
                     weights.size(1) == q.size(1) && weights.scalar_type() == at::kFloat &&
                     weights.device() == q.device() && weights.is_contiguous(),
                 "index_topk: weights",
                 fmt::format("contiguous fp32 [{}, {}] on q's device", q.size(0), q.size(1)),
                 weights);
  const auto require_bound = [&](const at::Tensor& bound, const char* name) {
    require_tensor(bound.dim() == 1 && bound.size(0) == q.size(0) &&
                       bound.scalar_type() == at::kInt && bound.device() == q.device() &&
                       bound.is_contiguous(),
                   name, fmt::format("contiguous int32 [{}] on q's device", q.size(0)), bound);
  };
  require_bound(start, "index_topk: start");
  require_bound(end, "index_topk: end");
  if (!q.is_cpu()) return;  // to read the ranges back would wait for the device
  for (std::int64_t t = 0; t < q.size(0); ++t) {
    const std::int32_t first = start.const_data_ptr<std::int32_t>()[t];
    const std::int32_t last = end.const_data_ptr<std::int32_t>()[t];
    if (first < 0 || last > keys.size(0)) {
      throw expectation_error(fmt::format("index_topk: range of query {}", t),
                              fmt::format("start >= 0 and end <= {}", keys.size(0)),
                              fmt::format("[{}, {})", first, last));
    }
  }
}

#ifdef INDEXCACHE_CUDA
// The arguments of the fused kernel; none where it does not take them.
std::optional<IndexTopkCudaParams> fused_params(const at::Tensor& q, const at::Tensor& keys,
                                                const at::Tensor& weights, const at::Tensor& start,
                                                const at::Tensor& end, std::int64_t k) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const auto aligned = [](const at::Tensor& tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  };
  // One key has any stride.
  const std::int64_t key_stride = keys.size(0) > 1 ? 2 * keys.stride(0) : 256;
  const bool takes = q.is_cuda() && q.scalar_type() == at::kBFloat16 && q.size(2) == 128 &&
                     q.size(1) <= 64 && k <= 2048 && q.size(0) <= kMost && key_stride % 16 == 0 &&
                     key_stride >= 256 && aligned(q) && aligned(keys);
  if (!takes) return std::nullopt;
  return IndexTopkCudaParams{.format = IndexKeyFormat::kBFloat16,
                             .num_queries = static_cast<std::int32_t>(q.size(0)),
                             .num_heads = static_cast<std::int32_t>(q.size(1)),
                             .num_keys = static_cast<std::int32_t>(keys.size(0)),
                             .top_k = static_cast<std::int32_t>(k),
                             .q = q.const_data_ptr(),
                             .keys = keys.const_data_ptr(),
                             .key_stride = key_stride,
                             .weights = weights.const_data_ptr<float>(),
                             .start = start.const_data_ptr<std::int32_t>(),
                             .end = end.const_data_ptr<std::int32_t>()};
}
#endif

}  // namespace

at::Tensor index_topk(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                      const at::Tensor& start, const at::Tensor& end, std::int64_t k) {
  validate(q, keys, weights, start, end);
  if (k < 1) throw expectation_error("index_topk: k", "at least 1", std::to_string(k));
#ifdef INDEXCACHE_CUDA
  if (const auto fused = fused_params(q, keys, weights, start, end, k)) {
    return index_topk_fused(*fused, q.device());
  }
#endif
  if (!q.is_cpu()) {
    return index_topk_torch(q, keys, weights, start.clamp_min(0), end.clamp_max(keys.size(0)), k);
  }

  at::Tensor out = at::empty({q.size(0), k}, q.options().dtype(at::kInt));
  IndexTopkParams params;
  params.num_queries = q.size(0);
  params.num_heads = q.size(1);
  params.head_dim = q.size(2);
  params.num_keys = keys.size(0);
  params.top_k = k;
  params.dtype = q.scalar_type() == at::kFloat ? IndexDType::kFloat32 : IndexDType::kBFloat16;
  params.q = q.const_data_ptr();
  params.keys = keys.const_data_ptr();
  params.key_stride = keys.stride(0);
  params.weights = weights.const_data_ptr<float>();
  params.start = start.const_data_ptr<std::int32_t>();
  params.end = end.const_data_ptr<std::int32_t>();
  params.out = out.mutable_data_ptr<std::int32_t>();
  index_topk_cpu(params, torch_pool());
  return out;
}

}  // namespace indexcache
