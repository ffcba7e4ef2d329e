#include "torch_ops/fake.h"

#include <ATen/ops/empty.h>

#include "indexcache/kernels/latent_row.h"
#include "indexcache/kernels/union_entry.h"

namespace indexcache::torch_ops {
namespace {

using c10::string_view;
using std::int64_t;
using Two = std::tuple<Tensor, Tensor>;

Tensor empty(c10::SymIntArrayRef sizes, const Tensor& like, at::ScalarType dtype) {
  return at::empty_symint(sizes, like.options().dtype(dtype));
}

Tensor index_set(const Tensor& q, int64_t k) { return empty({q.sym_size(0), k}, q, at::kInt); }

Tensor index_topk(const Tensor& q, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                  int64_t k) {
  return index_set(q, k);
}

Tensor index_topk_fp8(const Tensor& q, const Tensor&, string_view, const Tensor&, const Tensor&,
                      string_view, const Tensor&, const Tensor&, int64_t k,
                      const std::optional<Tensor>&) {
  return index_set(q, k);
}

Tensor index_topk_paged(const Tensor& q, const Tensor&, string_view, const Tensor&, string_view,
                        const Tensor&, const Tensor&, const Tensor&, int64_t k, int64_t,
                        const std::optional<Tensor>&) {
  return index_set(q, k);
}

Two index_union(const Tensor& indices, const Tensor& group_begin) {
  const c10::SymInt groups = group_begin.sym_size(0) - 1;
  return {empty({groups, indices.sym_size(1) * kGroupQueries}, indices, at::kInt),
          empty({groups}, indices, at::kInt)};
}

Two attention(const Tensor& q, c10::SymInt value_dim) {
  return {empty({q.sym_size(0), q.sym_size(1), std::move(value_dim)}, q, q.scalar_type()),
          empty({q.sym_size(0), q.sym_size(1)}, q, at::kFloat)};
}

Two sparse_mla(const Tensor& q, const Tensor&, const Tensor&, int64_t value_dim, double) {
  return attention(q, value_dim);
}

Two sparse_mla_paged(const Tensor& q, const Tensor&, const std::optional<Tensor>&,
                     const std::optional<Tensor>&, const Tensor&, double, string_view) {
  return attention(q, kLatentDim);
}

Two sparse_mla_union(const Tensor& q, const Tensor&, const std::optional<Tensor>&, const Tensor&,
                     const std::optional<Tensor>&, const Tensor&, const Tensor&, double,
                     string_view) {
  return attention(q, kLatentDim);
}

Two index_q(const Tensor& q, const Tensor& weights, const Tensor&, const Tensor&, string_view,
            double) {
  return {empty(q.sym_sizes(), q, at::kFloat8_e4m3fn),
          empty(weights.sym_sizes(), weights, at::kFloat)};
}

void index_k_append(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                    string_view, double) {}

void latent_append(const Tensor&, const Tensor&, const Tensor&, const Tensor&, string_view,
                   double) {}

}  // namespace

void implement_fake(torch::Library& m) {
  m.impl("index_topk", &index_topk);
  m.impl("index_topk_fp8", &index_topk_fp8);
  m.impl("index_topk_paged", &index_topk_paged);
  m.impl("index_union", &index_union);
  m.impl("sparse_mla", &sparse_mla);
  m.impl("sparse_mla_paged", &sparse_mla_paged);
  m.impl("sparse_mla_union", &sparse_mla_union);
  m.impl("index_q", &index_q);
  m.impl("index_k_append", &index_k_append);
  m.impl("latent_append", &latent_append);
}

}  // namespace indexcache::torch_ops
