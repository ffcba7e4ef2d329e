// How far a forward pass is from selecting other keys or experts: what an exact comparison of index
// sets with another implementation rests on.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scatter.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <variant>
#include <vector>

#include "indexcache/layers/norm.h"
#include "indexcache/model/model.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"

namespace indexcache::testing {

struct Margins {
  // Least, over Full layers and queries, (k-th - (k+1)-th index score) / largest |score|.
  double index = std::numeric_limits<double>::infinity();
  // Least, over MoE layers and tokens, last chosen - first rejected expert, and group of experts.
  double router = std::numeric_limits<double>::infinity();
};

// Between the k-th and the next of the last axis: the least one.
inline double least_gap(const at::Tensor& values, std::int64_t k) {
  const auto best = std::get<0>(values.topk(k + 1, -1));
  return (best.select(-1, k - 1) - best.select(-1, k)).min().item<double>();
}

inline double index_margin(const IndexerProjected& projected, std::int64_t top_k) {
  const auto num_tokens = projected.q.size(0);
  if (num_tokens <= top_k) return std::numeric_limits<double>::infinity();
  const auto start = at::zeros({num_tokens}, at::kInt);
  const auto end = at::arange(1, num_tokens + 1, at::kInt);
  const auto scores = index_scores(projected.q, projected.keys, projected.weights, start, end);
  const auto largest = scores.masked_fill(scores == -std::numeric_limits<double>::infinity(), 0)
                           .abs()
                           .amax(-1, true);
  // Queries that see no more than k keys select them all.
  return least_gap((scores / largest).narrow(0, top_k, num_tokens - top_k), top_k);
}

inline double router_margin(const at::Tensor& x, const MoeWeights& weights, const MoeShape& shape) {
  auto choice = at::linear(x, weights.router).sigmoid() + weights.selection_bias;
  double margin = std::numeric_limits<double>::infinity();
  if (shape.num_groups > shape.topk_groups) {
    const auto groups = choice.unflatten(-1, {shape.num_groups, -1});
    const auto scores = std::get<0>(groups.topk(2, -1)).sum(-1);
    margin = least_gap(scores, shape.topk_groups);
    const auto kept = std::get<1>(scores.topk(shape.topk_groups, -1));
    const auto closed = at::scatter(at::ones_like(scores), -1, kept, 0).to(at::kBool);
    choice = groups.masked_fill(closed.unsqueeze(-1), -std::numeric_limits<double>::infinity())
                 .flatten(-2);
  }
  return std::min(margin, least_gap(choice, shape.experts_per_token));
}

// tokens [T] as one chunk. The layers are walked by their parts: a block hands out neither its
// index scores nor what its router sees.
inline Margins measure_margins(const Model& model, const Pattern& pattern,
                               const at::Tensor& tokens) {
  const c10::InferenceMode guard;
  const auto shape = block_shape(model.config(), model.options().latent_norm_eps);
  const auto rope = make_rope_table(rope_frequencies(model.config()), 0, tokens.size(0));
  Margins margins;
  std::vector<IndexSet> index_sets(static_cast<std::size_t>(model.num_layers()));
  auto hidden = model.embed(tokens);
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    const auto& weights = model.weights().blocks[layer];
    const auto x = rms_norm(hidden, weights.input_norm, shape.rms_norm_eps);
    const auto projected = mla_project(x, weights.mla, shape.mla, rope);
    const bool full = pattern.is_full(layer);
    if (full) {
      margins.index = std::min(margins.index,
                               index_margin(indexer_project(x, projected.q_latent, *weights.indexer,
                                                            shape.indexer, rope),
                                            shape.indexer.top_k));
    }
    auto cache =
        model.make_layer_cache(full ? LayerRole::kFull : LayerRole::kShared, tokens.size(0));
    const auto source_set = full ? IndexSet() : index_sets[pattern.source(layer)];
    const auto after =
        model.run_layer(layer, hidden, 0, cache, source_set, full ? &index_sets[layer] : nullptr);
    if (const auto* moe = std::get_if<MoeWeights>(&weights.mlp)) {
      const auto attended =
          sparse_mla(mla_absorb_query(projected, weights.mla, shape.mla),
                     mla_cache_entry(projected), (full ? index_sets[layer] : source_set).indices(),
                     shape.mla.kv_lora_rank, shape.mla.softmax_scale)
              .out;
      const auto residual = hidden + at::linear(mla_expand_output(attended, weights.mla, shape.mla),
                                                weights.mla.o_proj);
      margins.router = std::min(
          margins.router,
          router_margin(rms_norm(residual, weights.post_attention_norm, shape.rms_norm_eps), *moe,
                        shape.moe));
    }
    hidden = after;
  }
  return margins;
}

}  // namespace indexcache::testing
