#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_or.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/bitwise_xor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/topk.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <limits>

#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/select_rows_params.h"
#include "indexcache/ops/wide_product.h"

namespace indexcache {
namespace {

constexpr std::int64_t kOutside = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kLowBits = 0xFFFFFFFF;

// [M, N] bool: whether the key is in the query's range.
at::Tensor range_mask(const at::Tensor& start, const at::Tensor& end, std::int64_t num_keys) {
  const at::Tensor position = at::arange(num_keys, start.options());
  return position.ge(start.unsqueeze(1)).logical_and_(position.lt(end.unsqueeze(1)));
}

// [M, H, N] fp32: q . keys. Products of bf16 are exact in fp32, and CUDA keeps the sums so; the CPU's
// matrix product would round them.
at::Tensor dot_products(const at::Tensor& q, const at::Tensor& keys) {
  const std::int64_t queries = q.size(0), heads = q.size(1), num_keys = keys.size(0);
  const at::NoTF32Guard full_precision;
  const auto dtype = q.is_cuda() ? q.scalar_type() : at::kFloat;
  const at::Tensor rows = q.to(dtype).reshape({1, queries * heads, q.size(2)});
  return wide_product(rows, keys.to(dtype).t().unsqueeze(0)).view({queries, heads, num_keys});
}

// [M, N] from [M, H, N].
at::Tensor weighted_sum(const at::Tensor& relu, const at::Tensor& weights) {
  const at::NoTF32Guard full_precision;
  return at::bmm(weights.unsqueeze(1), relu).squeeze(1);
}

// int64 keys in the op's order: a larger key ranks first. High half: the score's bits mapped to a
// signed integer of the same order, NaN lowest. Low half: the index, inverted.
at::Tensor ranking_keys(const at::Tensor& scores) {
  const at::Tensor bits = at::add(scores, 0.0).view(at::kInt);  // -0 + 0 = +0
  const at::Tensor flip =
      at::bitwise_and(at::bitwise_right_shift(bits, 31), std::numeric_limits<std::int32_t>::max());
  const at::Tensor ordered =
      at::bitwise_xor(bits, flip)
          .masked_fill_(at::isnan(scores), std::numeric_limits<std::int32_t>::min());
  const at::Tensor inverted =
      at::sub(at::full({}, kLowBits, scores.options().dtype(at::kLong)),
              at::arange(scores.size(1), scores.options().dtype(at::kLong)));
  return at::bitwise_or(ordered.to(at::kLong).mul_(std::int64_t{1} << 32), inverted);
}

// The k best of each row of scores, as index_topk returns them.
at::Tensor select_by_sorting(const at::Tensor& scores, const at::Tensor& start,
                             const at::Tensor& end, std::int64_t k) {
  const std::int64_t kept = std::min(k, scores.size(1));
  const at::Tensor ranking = ranking_keys(scores).masked_fill_(
      range_mask(start, end, scores.size(1)).logical_not_(), kOutside);
  const at::Tensor best = std::get<0>(at::topk(ranking, kept, -1, true, false));
  const at::Tensor index = at::bitwise_xor(at::bitwise_and(best, kLowBits), kLowBits);
  const at::Tensor ascending =
      std::get<0>(at::sort(index.masked_fill(best.eq(kOutside), kLowBits)));
  return at::constant_pad_nd(
      at::sub(ascending, start.unsqueeze(1)).masked_fill_(ascending.eq(kLowBits), -1),
      {0, k - kept}, -1);
}

#ifdef INDEXCACHE_CUDA
void select_rows(const at::Tensor& scores, const at::Tensor& start, const at::Tensor& end,
                 const at::Tensor& out) {
  const c10::DeviceGuard guard(scores.device());
  select_rows_cuda({.num_queries = scores.size(0),
                    .num_keys = scores.size(1),
                    .top_k = out.size(1),
                    .scores = scores.const_data_ptr<float>(),
                    .start = start.const_data_ptr<std::int32_t>(),
                    .end = end.const_data_ptr<std::int32_t>(),
                    .out = out.mutable_data_ptr<std::int32_t>()},
                   current_stream(scores.device()));
}
#endif

void select(const at::Tensor& scores, const at::Tensor& start, const at::Tensor& end,
            const at::Tensor& out) {
#ifdef INDEXCACHE_CUDA
  if (scores.is_cuda()) return select_rows(scores, start, end, out);
#endif
  out.copy_(select_by_sorting(scores, start, end, out.size(1)));
}

}  // namespace

at::Tensor index_scores(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                        const at::Tensor& start, const at::Tensor& end) {
  return weighted_sum(at::relu(dot_products(q, keys)), weights)
      .masked_fill(range_mask(start, end, keys.size(0)).logical_not_(),
                   -std::numeric_limits<double>::infinity());
}

at::Tensor index_topk_torch(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                            const at::Tensor& start, const at::Tensor& end, std::int64_t k,
                            std::int64_t chunk_floats) {
  const at::NoGradGuard no_grad;
  const std::int64_t num_queries = q.size(0), num_keys = keys.size(0);
  const at::Tensor out = at::full({num_queries, k}, -1, q.options().dtype(at::kInt));
  if (num_keys == 0) return out;
  const std::int64_t chunk = std::max<std::int64_t>(1, chunk_floats / (q.size(1) * num_keys));
  for (std::int64_t first = 0; first < num_queries; first += chunk) {
    const std::int64_t last = std::min(first + chunk, num_queries);
    const at::Tensor scores = weighted_sum(dot_products(q.slice(0, first, last), keys).relu_(),
                                           weights.slice(0, first, last));
    select(scores, start.slice(0, first, last), end.slice(0, first, last),
           out.slice(0, first, last));
  }
  return out;
}

}  // namespace indexcache
