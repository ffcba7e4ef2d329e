#include <ATen/Context.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <limits>

#include "indexcache/ops/sparse_mla/sparse_mla.h"

namespace indexcache {

SparseMlaResult sparse_mla_torch(const at::Tensor& q, const at::Tensor& kv,
                                 const at::Tensor& indices, std::int64_t value_dim,
                                 double softmax_scale, std::int64_t chunk_floats) {
  const std::int64_t num_queries = q.size(0), heads = q.size(1), dim = q.size(2);
  const std::int64_t k = indices.size(1);
  SparseMlaResult result{at::empty({num_queries, heads, value_dim}, q.options()),
                         at::empty({num_queries, heads}, q.options().dtype(at::kFloat))};
  if (k == 0 || kv.size(0) == 0) {
    result.out.zero_();
    result.lse.fill_(-std::numeric_limits<double>::infinity());
    return result;
  }
  const at::NoTF32Guard full_precision;
  const std::int64_t chunk = std::max<std::int64_t>(1, chunk_floats / (k * dim));
  for (std::int64_t first = 0; first < num_queries; first += chunk) {
    const std::int64_t last = std::min(first + chunk, num_queries);
    const at::Tensor rows = indices.slice(0, first, last);
    const at::Tensor skipped = rows.lt(0);
    // A skipped entry gathers row 0 for shape's sake; its values must not enter, not even as 0 *
    // NaN.
    const at::Tensor gathered = kv.index_select(0, rows.clamp_min(0).reshape(-1))
                                    .to(at::kFloat)
                                    .view({last - first, k, dim})
                                    .masked_fill_(skipped.unsqueeze(-1), 0.0);
    const at::Tensor logits =
        at::bmm(q.slice(0, first, last).to(at::kFloat), gathered.transpose(1, 2))
            .mul_(softmax_scale)
            .masked_fill_(skipped.unsqueeze(1), -std::numeric_limits<double>::infinity());
    const at::Tensor empty = skipped.all(-1).view({-1, 1, 1});
    const at::Tensor probabilities = at::softmax(logits, -1).masked_fill_(empty, 0.0);
    result.lse.slice(0, first, last).copy_(at::logsumexp(logits, -1));
    result.out.slice(0, first, last).copy_(at::bmm(probabilities, gathered.slice(2, 0, value_dim)));
  }
  return result;
}

}  // namespace indexcache
