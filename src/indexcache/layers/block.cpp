#include "indexcache/layers/block.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include "indexcache/base/error.h"
#include "indexcache/base/span.h"
#include "indexcache/kernels/latent_row.h"
#include "indexcache/kernels/union_entry.h"
#include "indexcache/layers/norm.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_paged.h"

namespace indexcache {
namespace {

struct Projections {
  at::Tensor x;  // hidden, normalised
  MlaProjected mla;
  at::Tensor query;  // absorbed
};

Projections project(const at::Tensor& hidden, const BlockWeights& weights, const BlockShape& shape,
                    const RopeTable& rope) {
  Projections out;
  out.x = rms_norm(hidden, weights.input_norm, shape.rms_norm_eps);
  out.mla = mla_project(out.x, weights.mla, shape.mla, rope);
  out.query = mla_absorb_query(out.mla, weights.mla, shape.mla);
  return out;
}

// Scores every token up to the query itself and keeps the best k; appends the chunk's index keys
// first.
at::Tensor own_index_set(const at::Tensor& x, const at::Tensor& q_latent,
                         std::int64_t first_position, const BlockWeights& weights,
                         const IndexerShape& shape, const RopeTable& rope, BlockCache& cache) {
  const TimedSpan span("indexer");
  INDEXCACHE_ASSERT(weights.indexer.has_value() && cache.index_keys.defined());
  const auto num_tokens = x.size(0);
  const auto projected = indexer_project(x, q_latent, *weights.indexer, shape, rope);
  cache.index_keys.narrow(0, first_position, num_tokens).copy_(projected.keys);

  const auto keys = cache.index_keys.narrow(0, 0, first_position + num_tokens);
  const auto positions = x.options().dtype(at::kInt);
  const auto start = at::zeros({num_tokens}, positions);
  const auto end = at::arange(first_position + 1, first_position + num_tokens + 1, positions);
  return index_topk(projected.q, keys, projected.weights, start, end, shape.top_k);
}

// Whether the kernel over unions takes this, and a group fills no more of a tile than one query does.
bool gains_from_groups(const at::Tensor& query, const at::Tensor& latents,
                       const at::Tensor& indices, const MlaShape& shape) {
  constexpr std::int64_t kTileRows = 64;    // (query, head) pairs of a tile of sparse_mla's kernel
  constexpr std::int64_t kMostKeys = 8192;  // of a set: index_union's limit on CUDA
  return query.is_cuda() && query.scalar_type() == at::kBFloat16 && query.size(0) > 1 &&
         query.size(1) * kGroupQueries <= kTileRows && shape.kv_lora_rank == kLatentDim &&
         shape.qk_rope_head_dim == kRopeDim && indices.size(1) <= kMostKeys &&
         latents.size(0) <= kUnionMaxKeys;
}

}  // namespace

at::Tensor feed_forward(const at::Tensor& x, const BlockWeights& weights, const BlockShape& shape,
                        at::Tensor* expert_load) {
  if (const auto* moe = std::get_if<MoeWeights>(&weights.mlp)) {
    const TimedSpan span("moe");
    return moe_forward(x, *moe, shape.moe, expert_load);
  }
  const TimedSpan span("mlp");
  return mlp_forward(x, std::get<MlpWeights>(weights.mlp));
}

at::Tensor block_forward(const at::Tensor& hidden, std::int64_t first_position,
                         const BlockWeights& weights, const BlockShape& shape,
                         const RopeTable& rope, BlockCache& cache, const IndexSet& source_set,
                         IndexSet* own_set) {
  Projections projected;
  {
    const TimedSpan span("projections");
    projected = project(hidden, weights, shape, rope);
    cache.latents.narrow(0, first_position, hidden.size(0)).copy_(mla_cache_entry(projected.mla));
  }

  IndexSet index_set = source_set;
  if (!index_set.defined()) {
    index_set = own_index_set(projected.x, projected.mla.q_latent, first_position, weights,
                              shape.indexer, rope, cache);
    if (own_set != nullptr) *own_set = index_set;
  }

  const auto attended =
      core_attention(projected.query, first_position, weights, shape, cache, index_set);
  at::Tensor residual, x;
  {
    const TimedSpan span("projections");
    residual = hidden + at::linear(attended, weights.mla.o_proj);
    x = rms_norm(residual, weights.post_attention_norm, shape.rms_norm_eps);
  }
  return residual + feed_forward(x, weights, shape);
}

at::Tensor attention_query(const at::Tensor& hidden, const BlockWeights& weights,
                           const BlockShape& shape, const RopeTable& rope) {
  const TimedSpan span("projections");
  return project(hidden, weights, shape, rope).query;
}

IndexerProjected index_inputs(const at::Tensor& hidden, const BlockWeights& weights,
                              const BlockShape& shape, const RopeTable& rope) {
  INDEXCACHE_ASSERT(weights.indexer.has_value());
  const auto x = rms_norm(hidden, weights.input_norm, shape.rms_norm_eps);
  const auto q_latent = mla_project(x, weights.mla, shape.mla, rope).q_latent;
  return indexer_project(x, q_latent, *weights.indexer, shape.indexer, rope);
}

at::Tensor core_attention(const at::Tensor& query, std::int64_t first_position,
                          const BlockWeights& weights, const BlockShape& shape,
                          const BlockCache& cache, const IndexSet& index_set) {
  const auto latents = cache.latents.narrow(0, 0, first_position + query.size(0));
  const double scale = shape.mla.softmax_scale;
  at::Tensor attended;
  {
    const TimedSpan span("sparse_mla");
    if (gains_from_groups(query, latents, index_set.indices(), shape.mla)) {
      const auto& set = index_set.grouped(first_position);
      attended = sparse_mla_union(query, {.pages = latents.unsqueeze(0)}, set.group_begin,
                                  std::nullopt, set.keys.entries, set.keys.counts, scale)
                     .out;
    } else {
      attended = sparse_mla(query, latents, index_set.indices(), shape.mla.kv_lora_rank, scale).out;
    }
  }
  const TimedSpan span("projections");
  return mla_expand_output(attended, weights.mla, shape.mla);
}

}  // namespace indexcache
