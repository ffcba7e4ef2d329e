// The ops as PyTorch custom ops, torch.ops.indexcache.*, for Python and for any engine: docs/python.md.
// What the arguments are is said in the ops' headers; a cache's type is a word of
// kernels/index_key_type.h. An InputError becomes Python's ValueError.
#include <torch/library.h>

#include <utility>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_k_append/index_k_append.h"
#include "indexcache/ops/index_q/index_q.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/index_topk_fp8.h"
#include "indexcache/ops/index_union/index_union.h"
#include "indexcache/ops/latent_append/latent_append.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_paged.h"
#include "torch_ops/fake.h"

namespace indexcache::torch_ops {
namespace {

using c10::string_view;
using std::int64_t;
using Two = std::tuple<Tensor, Tensor>;

Two two(const SparseMlaResult& result) { return {result.out, result.lse}; }

EntrySplit parse_split(string_view text) {
  if (text == "whole") return EntrySplit::kWhole;
  if (text == "cluster") return EntrySplit::kCluster;
  throw expectation_error("split", "whole or cluster", quote({text.data(), text.size()}));
}

ScaleFormat parse_scale(string_view text) {
  if (text == "fp32") return ScaleFormat::kFloat32;
  if (text == "bf16") return ScaleFormat::kBFloat16;
  if (text == "ue8m0") return ScaleFormat::kPowerOfTwo;
  throw expectation_error("scale", "fp32, bf16 or ue8m0", quote({text.data(), text.size()}));
}

IndexKeyType parse_type(string_view text) {
  return parse_index_key_type({text.data(), text.size()});
}

Tensor run_index_topk_fp8(const Tensor& q, const Tensor& weights, string_view query_type,
                          const Tensor& keys, const Tensor& key_scale, string_view key_type,
                          const Tensor& start, const Tensor& end, int64_t k,
                          const std::optional<Tensor>& seeds) {
  return index_topk_fp8({q, weights, parse_type(query_type)},
                        {keys, key_scale, parse_type(key_type)}, start, end, k, seeds);
}

Tensor run_index_topk_paged(const Tensor& q, const Tensor& weights, string_view query_type,
                            const Tensor& pages, string_view key_type, const Tensor& block_table,
                            const Tensor& start, const Tensor& end, int64_t k,
                            int64_t tokens_per_request, const std::optional<Tensor>& seeds) {
  return index_topk_paged({q, weights, parse_type(query_type)}, {pages, parse_type(key_type)},
                          block_table, start, end, k, tokens_per_request, seeds);
}

Two run_index_union(const Tensor& indices, const Tensor& group_begin) {
  const IndexUnion result = index_union(indices, group_begin);
  return {result.entries, result.counts};
}

Two run_sparse_mla(const Tensor& q, const Tensor& kv, const Tensor& indices, int64_t value_dim,
                   double softmax_scale) {
  return two(sparse_mla(q, kv, indices, value_dim, softmax_scale));
}

Two run_sparse_mla_paged(const Tensor& q, const Tensor& pages,
                         const std::optional<Tensor>& block_table,
                         const std::optional<Tensor>& request, const Tensor& indices,
                         double softmax_scale, string_view split) {
  return two(sparse_mla_paged(q, {pages, block_table}, request, indices, softmax_scale,
                              parse_split(split)));
}

Two run_sparse_mla_union(const Tensor& q, const Tensor& pages,
                         const std::optional<Tensor>& block_table, const Tensor& group_begin,
                         const std::optional<Tensor>& request, const Tensor& entries,
                         const Tensor& counts, double softmax_scale, string_view split) {
  return two(sparse_mla_union(q, {pages, block_table}, group_begin, request, entries, counts,
                              softmax_scale, parse_split(split)));
}

Two run_index_q(const Tensor& q, const Tensor& weights, const Tensor& cos_sin,
                const Tensor& positions, string_view type, double amax_floor) {
  const IndexQueries result = index_q(q, weights, cos_sin, positions, parse_type(type), amax_floor);
  return {result.q, result.weights};
}

void run_index_k_append(const Tensor& keys, const Tensor& cos_sin, const Tensor& positions,
                        const Tensor& slots, const Tensor& pages, string_view type,
                        double amax_floor) {
  index_k_append(keys, cos_sin, positions, slots, {pages, parse_type(type)}, amax_floor);
}

void run_latent_append(const Tensor& latents, const Tensor& rope_keys, const Tensor& slots,
                       const Tensor& pages, string_view scale, double amax_floor) {
  latent_append(latents, rope_keys, slots, pages, parse_scale(scale), amax_floor);
}

// The function with the caller's mistakes as Python's ValueError.
template <auto kFunction, typename Type = decltype(kFunction)>
struct Guarded;
template <auto kFunction, typename Result, typename... Args>
struct Guarded<kFunction, Result (*)(Args...)> {
  static Result call(Args... args) {
    try {
      return kFunction(std::forward<Args>(args)...);
    } catch (const InputError& error) {
      C10_THROW_ERROR(ValueError, error.what());
    }
  }
};

// One function serves CPU and CUDA tensors: the ops choose by device.
void implement(torch::Library& m) {
  m.impl("index_topk", &Guarded<&index_topk>::call);
  m.impl("index_topk_fp8", &Guarded<&run_index_topk_fp8>::call);
  m.impl("index_topk_paged", &Guarded<&run_index_topk_paged>::call);
  m.impl("index_union", &Guarded<&run_index_union>::call);
  m.impl("sparse_mla", &Guarded<&run_sparse_mla>::call);
  m.impl("sparse_mla_paged", &Guarded<&run_sparse_mla_paged>::call);
  m.impl("sparse_mla_union", &Guarded<&run_sparse_mla_union>::call);
  m.impl("index_q", &Guarded<&run_index_q>::call);
  m.impl("index_k_append", &Guarded<&run_index_k_append>::call);
  m.impl("latent_append", &Guarded<&run_latent_append>::call);
}

TORCH_LIBRARY(indexcache, m) {
  m.def(
      "index_topk(Tensor q, Tensor keys, Tensor weights, Tensor start, Tensor end, int k) -> "
      "Tensor");
  m.def(
      "index_topk_fp8(Tensor q, Tensor weights, str query_type, Tensor keys, Tensor key_scale, "
      "str key_type, Tensor start, Tensor end, int k, Tensor? seeds=None) -> Tensor");
  m.def(
      "index_topk_paged(Tensor q, Tensor weights, str query_type, Tensor pages, str key_type, "
      "Tensor block_table, Tensor start, Tensor end, int k, int tokens_per_request, "
      "Tensor? seeds=None) -> Tensor");
  m.def("index_union(Tensor indices, Tensor group_begin) -> (Tensor entries, Tensor counts)");
  m.def(
      "sparse_mla(Tensor q, Tensor kv, Tensor indices, int value_dim, float softmax_scale) -> "
      "(Tensor out, Tensor lse)");
  m.def(
      "sparse_mla_paged(Tensor q, Tensor pages, Tensor? block_table, Tensor? request, "
      "Tensor indices, float softmax_scale, str split='whole') -> (Tensor out, Tensor lse)");
  m.def(
      "sparse_mla_union(Tensor q, Tensor pages, Tensor? block_table, Tensor group_begin, "
      "Tensor? request, Tensor entries, Tensor counts, float softmax_scale, str split='whole') -> "
      "(Tensor out, Tensor lse)");
  m.def(
      "index_q(Tensor q, Tensor weights, Tensor cos_sin, Tensor positions, str type, "
      "float amax_floor=1e-4) -> (Tensor q, Tensor weights)");
  m.def(
      "index_k_append(Tensor keys, Tensor cos_sin, Tensor positions, Tensor slots, "
      "Tensor(a!) pages, str type, float amax_floor=1e-4) -> ()");
  m.def(
      "latent_append(Tensor latents, Tensor rope_keys, Tensor slots, Tensor(a!) pages, "
      "str scale='bf16', float amax_floor=1e-4) -> ()");
}

TORCH_LIBRARY_IMPL(indexcache, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(indexcache, CUDA, m) { implement(m); }
TORCH_LIBRARY_IMPL(indexcache, Meta, m) { implement_fake(m); }

}  // namespace
}  // namespace indexcache::torch_ops
