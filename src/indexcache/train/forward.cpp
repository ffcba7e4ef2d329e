#include "indexcache/train/forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>

#include <map>

#include "indexcache/base/error.h"
#include "indexcache/layers/norm.h"
#include "indexcache/train/indexer_attention.h"
#include "indexcache/train/lm_loss.h"

namespace indexcache {
namespace {

// The flash kernels want one head dimension; values are padded with zeros up to it.
at::Tensor dense_attention(const MlaExpanded& attention, double scale) {
  const auto padding = attention.q.size(-1) - attention.v.size(-1);
  const auto v = padding > 0 ? at::constant_pad_nd(attention.v, {0, padding}) : attention.v;
  return at::scaled_dot_product_attention(attention.q.transpose(1, 2), attention.k.transpose(1, 2),
                                          v.transpose(1, 2), {}, 0.0, /*is_causal=*/true, scale)
      .transpose(1, 2)
      .narrow(-1, 0, attention.v.size(-1));
}

// A Full layer while layers read from it.
struct Source {
  IndexerProjected indexer;
  at::Tensor index_set;              // undefined in the dense form
  std::vector<MlaExpanded> readers;  // so far; for L_avg
  at::Tensor kl;                     // L_multi's sum so far
};

class Pass {
 public:
  Pass(const BlockShape& shape, const RopeTable& rope, StageKind kind, const Pattern& pattern,
       IndexLoss index_loss, TrainingForward& result)
      : shape_(shape),
        rope_(rope),
        kind_(kind),
        pattern_(pattern),
        index_loss_(index_loss),
        losses_(static_cast<std::size_t>(pattern.num_layers())),
        result_(result) {}

  at::Tensor block(int layer, const at::Tensor& hidden, const BlockWeights& weights) {
    const at::AutoGradMode gradients(trains_model(kind_));
    const auto x = rms_norm(hidden, weights.input_norm, shape_.rms_norm_eps);
    const auto projected = mla_project(x, weights.mla, shape_.mla, rope_);
    const auto expanded = mla_expand(projected, weights.mla, shape_.mla);
    if (trains_indexers(kind_) && pattern_.is_full(layer)) {
      sources_.emplace(layer, make_source(x, projected, *weights.indexer));
    }
    const auto attended = trains_indexers(kind_)
                              ? attend_and_train(layer, expanded)
                              : dense_attention(expanded, shape_.mla.softmax_scale);
    const auto residual = hidden + at::linear(attended.flatten(-2), weights.mla.o_proj);
    const auto normed = rms_norm(residual, weights.post_attention_norm, shape_.rms_norm_eps);
    at::Tensor load;
    const auto out = residual + feed_forward(normed, weights, shape_, &load);
    result_.expert_loads.push_back(load);
    return out;
  }

  // A Full layer's each, in their order.
  std::vector<at::Tensor> losses() const {
    std::vector<at::Tensor> losses;
    for (const int layer : pattern_.full_layers()) {
      losses.push_back(losses_[static_cast<std::size_t>(layer)]);
    }
    return losses;
  }

 private:
  Source make_source(const at::Tensor& x, const MlaProjected& projected,
                     const IndexerWeights& weights) const {
    const at::AutoGradMode gradients(true);
    Source source;
    source.indexer =
        indexer_project(x.detach(), projected.q_latent.detach(), weights, shape_.indexer, rope_);
    if (is_sparse(kind_)) source.index_set = select_own_sets(source.indexer, shape_.indexer.top_k);
    return source;
  }

  at::Tensor attend_and_train(int layer, const MlaExpanded& expanded) {
    const int from = pattern_.is_full(layer) ? layer : pattern_.source(layer);
    auto& source = sources_.at(from);
    const auto out =
        index_loss_ == IndexLoss::kAverage || (index_loss_ == IndexLoss::kOwn && layer != from)
            ? attend(expanded, source)
            : attend_with_kl(expanded, source);
    if (index_loss_ == IndexLoss::kAverage) source.readers.push_back(expanded);
    if (layer == pattern_.last_reader(from)) {
      losses_[static_cast<std::size_t>(from)] = loss_of(from, source);
      sources_.erase(from);
    }
    return out;
  }

  at::Tensor attend(const MlaExpanded& expanded, const Source& source) const {
    return is_sparse(kind_) ? set_attention(expanded, shape_.mla.softmax_scale, source.index_set,
                                            chunk_of(expanded.q))
                            : dense_attention(expanded, shape_.mla.softmax_scale);
  }

  at::Tensor attend_with_kl(const MlaExpanded& expanded, Source& source) const {
    const at::AutoGradMode gradients(true);
    const auto attended = indexer_attention(expanded, shape_.mla.softmax_scale, source.indexer,
                                            source.index_set, chunk_of(expanded.q));
    source.kl = source.kl.defined() ? source.kl + attended.kl : attended.kl;
    return trains_model(kind_) ? attended.out : attended.out.detach();
  }

  at::Tensor loss_of(int layer, const Source& source) const {
    const at::AutoGradMode gradients(true);
    switch (index_loss_) {
      case IndexLoss::kOwn:
        return source.kl;
      case IndexLoss::kMulti:
        return source.kl / static_cast<double>(pattern_.readers(layer).size());
      case IndexLoss::kAverage:
        return averaged_index_kl(source.readers, shape_.mla.softmax_scale, source.indexer,
                                 source.index_set, chunk_of(source.indexer.q));
    }
    INDEXCACHE_ASSERT(false);
  }

  static std::int64_t chunk_of(const at::Tensor& x) { return attention_chunk_elements(x.device()); }

  const BlockShape& shape_;
  const RopeTable& rope_;
  const StageKind kind_;
  const Pattern& pattern_;
  const IndexLoss index_loss_;
  std::map<int, Source> sources_;
  std::vector<at::Tensor> losses_;  // [layers]
  TrainingForward& result_;
};

}  // namespace

bool trains_model(StageKind kind) {
  return kind == StageKind::kLanguageModel || kind == StageKind::kSparse;
}
bool trains_indexers(StageKind kind) { return kind != StageKind::kLanguageModel; }
bool is_sparse(StageKind kind) {
  return kind == StageKind::kSparse || kind == StageKind::kSparseIndexer;
}

TrainingForward training_forward(const ModelWeights& weights, const BlockShape& shape,
                                 const RopeFrequencies& rope, const TrainingBatch& batch,
                                 StageKind kind, const Pattern& pattern, IndexLoss index_loss) {
  TrainingForward result;
  const auto table = make_rope_table(rope, 0, batch.inputs.size(1));
  Pass pass(shape, table, kind, pattern, index_loss, result);
  auto hidden = at::embedding(weights.embedding, batch.inputs);
  for (int layer = 0; layer < pattern.num_layers(); ++layer) {
    hidden = pass.block(layer, hidden, weights.blocks[static_cast<std::size_t>(layer)]);
  }

  if (trains_model(kind)) {
    const auto normed = rms_norm(hidden, weights.final_norm, shape.rms_norm_eps);
    const auto lm = lm_loss(normed.flatten(0, 1), weights.head, batch.targets.flatten(),
                            batch.weights.flatten());
    result.loss = lm.loss;
    result.token_losses = lm.token_losses.detach();
  }
  if (trains_indexers(kind)) {
    const auto losses = at::stack(pass.losses());
    result.kl = losses.detach().unbind();
    const auto kl = losses.sum() * batch.share;
    result.loss = result.loss.defined() ? result.loss + kl : kl;
  }
  return result;
}

}  // namespace indexcache
