#include "indexcache/train/forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>

#include "indexcache/layers/norm.h"
#include "indexcache/train/indexer_attention.h"
#include "indexcache/train/lm_loss.h"

namespace indexcache {
namespace {

// Elements of a chunk of scores: enough to fill a GPU, few enough to stay in a CPU's caches.
constexpr std::int64_t kCudaChunk = std::int64_t{1} << 29;
constexpr std::int64_t kCpuChunk = std::int64_t{1} << 21;

// The flash kernels want one head dimension; values are padded with zeros up to it.
at::Tensor dense_attention(const MlaExpanded& attention, double scale) {
  const auto padding = attention.q.size(-1) - attention.v.size(-1);
  const auto v = padding > 0 ? at::constant_pad_nd(attention.v, {0, padding}) : attention.v;
  return at::scaled_dot_product_attention(attention.q.transpose(1, 2), attention.k.transpose(1, 2),
                                          v.transpose(1, 2), {}, 0.0, /*is_causal=*/true, scale)
      .transpose(1, 2)
      .narrow(-1, 0, attention.v.size(-1));
}

class Pass {
 public:
  Pass(const BlockShape& shape, const RopeTable& rope, StageKind kind, TrainingForward& result)
      : shape_(shape), rope_(rope), kind_(kind), result_(result) {}

  at::Tensor block(const at::Tensor& hidden, const BlockWeights& weights) {
    const at::AutoGradMode gradients(kind_ != StageKind::kIndexerWarmup);
    const auto x = rms_norm(hidden, weights.input_norm, shape_.rms_norm_eps);
    const auto projected = mla_project(x, weights.mla, shape_.mla, rope_);
    const auto expanded = mla_expand(projected, weights.mla, shape_.mla);
    const auto attended = kind_ == StageKind::kLanguageModel
                              ? dense_attention(expanded, shape_.mla.softmax_scale)
                              : attend_and_train(x, projected, expanded, *weights.indexer);
    const auto residual = hidden + at::linear(attended.flatten(-2), weights.mla.o_proj);
    const auto normed = rms_norm(residual, weights.post_attention_norm, shape_.rms_norm_eps);
    at::Tensor load;
    const auto out = residual + feed_forward(normed, weights, shape_, &load);
    result_.expert_loads.push_back(load);
    return out;
  }

  const std::vector<at::Tensor>& losses() const { return losses_; }

 private:
  at::Tensor attend_and_train(const at::Tensor& x, const MlaProjected& projected,
                              const MlaExpanded& expanded, const IndexerWeights& weights) {
    const at::AutoGradMode gradients(true);
    const auto indexer =
        indexer_project(x.detach(), projected.q_latent.detach(), weights, shape_.indexer, rope_);
    const auto index_set =
        kind_ == StageKind::kSparse ? select_own_sets(indexer, shape_.indexer.top_k) : at::Tensor();
    const auto attended = indexer_attention(expanded, shape_.mla.softmax_scale, indexer, index_set,
                                            x.is_cuda() ? kCudaChunk : kCpuChunk);
    losses_.push_back(attended.kl);
    result_.kl.push_back(attended.kl.detach());
    return kind_ == StageKind::kSparse ? attended.out : attended.out.detach();
  }

  const BlockShape& shape_;
  const RopeTable& rope_;
  const StageKind kind_;
  TrainingForward& result_;
  std::vector<at::Tensor> losses_;
};

}  // namespace

TrainingForward training_forward(const ModelWeights& weights, const BlockShape& shape,
                                 const RopeFrequencies& rope, const TrainingBatch& batch,
                                 StageKind kind) {
  TrainingForward result;
  const auto table = make_rope_table(rope, 0, batch.inputs.size(1));
  Pass pass(shape, table, kind, result);
  auto hidden = at::embedding(weights.embedding, batch.inputs);
  for (const auto& block : weights.blocks) hidden = pass.block(hidden, block);

  if (kind != StageKind::kIndexerWarmup) {
    const auto normed = rms_norm(hidden, weights.final_norm, shape.rms_norm_eps);
    const auto lm = lm_loss(normed.flatten(0, 1), weights.head, batch.targets.flatten(),
                            batch.weights.flatten());
    result.loss = lm.loss;
    result.token_losses = lm.token_losses.detach();
  }
  if (kind != StageKind::kLanguageModel) {
    const auto kl = at::stack(pass.losses()).sum();
    result.loss = result.loss.defined() ? result.loss + kl : kl;
  }
  return result;
}

}  // namespace indexcache
