#include <ATen/Context.h>
#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_or.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/bitwise_xor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>

#include "indexcache/ops/index_topk/index_topk.h"

namespace indexcache {
namespace {

constexpr std::int64_t kOutside = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kLowBits = 0xFFFFFFFF;

// [M, N] bool: whether the key is in the query's range.
at::Tensor range_mask(const at::Tensor& start, const at::Tensor& end, std::int64_t num_keys) {
  const at::Tensor position = at::arange(num_keys, start.options());
  return position.ge(start.unsqueeze(1)).logical_and_(position.lt(end.unsqueeze(1)));
}

at::Tensor unmasked_scores(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights) {
  const std::int64_t queries = q.size(0), heads = q.size(1), num_keys = keys.size(0);
  const at::NoTF32Guard full_precision;
  const at::Tensor dots =
      at::matmul(q.to(at::kFloat).reshape({queries * heads, q.size(2)}), keys.to(at::kFloat).t());
  return at::bmm(weights.unsqueeze(1), at::relu(dots.view({queries, heads, num_keys}))).squeeze(1);
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

}  // namespace

at::Tensor index_scores(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                        const at::Tensor& start, const at::Tensor& end) {
  return unmasked_scores(q, keys, weights)
      .masked_fill(range_mask(start, end, keys.size(0)).logical_not_(),
                   -std::numeric_limits<double>::infinity());
}

at::Tensor index_topk_torch(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                            const at::Tensor& start, const at::Tensor& end, std::int64_t k,
                            std::int64_t chunk_floats) {
  const std::int64_t num_queries = q.size(0), num_keys = keys.size(0);
  const std::int64_t kept = std::min(k, num_keys);
  at::Tensor out = at::full({num_queries, k}, -1, q.options().dtype(at::kInt));
  if (kept == 0) return out;
  const at::Tensor keys32 = keys.to(at::kFloat);
  const std::int64_t chunk = std::max<std::int64_t>(1, chunk_floats / (q.size(1) * num_keys));
  for (std::int64_t first = 0; first < num_queries; first += chunk) {
    const std::int64_t last = std::min(first + chunk, num_queries);
    const at::Tensor chunk_start = start.slice(0, first, last),
                     chunk_end = end.slice(0, first, last);
    const at::Tensor ranking =
        ranking_keys(
            unmasked_scores(q.slice(0, first, last), keys32, weights.slice(0, first, last)))
            .masked_fill_(range_mask(chunk_start, chunk_end, num_keys).logical_not_(), kOutside);
    const at::Tensor best = std::get<0>(at::topk(ranking, kept, -1, true, false));
    const at::Tensor index = at::bitwise_xor(at::bitwise_and(best, kLowBits), kLowBits);
    const at::Tensor ascending =
        std::get<0>(at::sort(index.masked_fill(best.eq(kOutside), kLowBits)));
    const at::Tensor relative =
        at::sub(ascending, chunk_start.unsqueeze(1)).masked_fill_(ascending.eq(kLowBits), -1);
    out.slice(0, first, last).slice(1, 0, kept).copy_(relative);
  }
  return out;
}

}  // namespace indexcache
