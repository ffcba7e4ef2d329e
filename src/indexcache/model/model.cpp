#include "indexcache/model/model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/core/InferenceMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "indexcache/base/error.h"
#include "indexcache/base/span.h"
#include "indexcache/layers/norm.h"
#include "indexcache/model/load_weights.h"

namespace indexcache {
namespace {

// Tokens whose [tokens, vocab] logits may exist at once.
constexpr std::int64_t kLossChunk = 1024;

// YaRN's magnitude correction m(a) = 0.1 a ln(factor) + 1 (spec 2.2).
double yarn_magnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// The (fractional) frequency index that turns `rotations` times over the original context.
double yarn_correction(double rotations, double dim, double theta, double original_context) {
  return dim * std::log(original_context / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(theta));
}

void check_index_topk(const std::vector<std::int64_t>& index_topk, int num_layers) {
  const bool positive = std::ranges::all_of(index_topk, [](auto k) { return k > 0; });
  if (index_topk.empty() || (std::ssize(index_topk) == num_layers && positive)) return;
  throw expectation_error("k of every layer", fmt::format("{} positive integers", num_layers),
                          fmt::format("{}", fmt::join(index_topk, ",")));
}

}  // namespace

RopeFrequencies rope_frequencies(const ModelConfig& config) {
  const auto dim = config.qk_rope_head_dim;
  RopeFrequencies out;
  out.inv_freq = at::empty({dim / 2}, at::kFloat);
  auto* inv_freq = out.inv_freq.data_ptr<float>();
  for (std::int64_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    inv_freq[i] = 1.0f / std::pow(static_cast<float>(config.rope.theta), exponent);
  }
  if (!config.rope.yarn) return out;

  const auto& yarn = *config.rope.yarn;
  const auto correction = [&](double rotations) {
    return yarn_correction(rotations, static_cast<double>(dim), config.rope.theta,
                           yarn.original_max_position_embeddings);
  };
  const double low = std::max(std::floor(correction(yarn.beta_fast)), 0.0);
  double high = std::min(std::ceil(correction(yarn.beta_slow)), static_cast<double>(dim) - 1.0);
  if (high == low) high += 0.001;  // no division by zero
  for (std::int64_t i = 0; i < dim / 2; ++i) {
    const auto ramp =
        static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    const float interpolated = inv_freq[i] / static_cast<float>(yarn.factor);
    inv_freq[i] = inv_freq[i] * (1.0f - ramp) + interpolated * ramp;
  }
  out.amplitude =
      yarn_magnitude(yarn.factor, yarn.mscale) / yarn_magnitude(yarn.factor, yarn.mscale_all_dim);
  return out;
}

BlockShape block_shape(const ModelConfig& config, std::optional<double> latent_norm_eps) {
  BlockShape shape;
  shape.rms_norm_eps = config.rms_norm_eps;
  shape.mla = {.num_heads = config.num_heads,
               .qk_nope_head_dim = config.qk_nope_head_dim,
               .qk_rope_head_dim = config.qk_rope_head_dim,
               .v_head_dim = config.v_head_dim,
               .kv_lora_rank = config.kv_lora_rank,
               .softmax_scale = config.softmax_scale(),
               .latent_norm_eps = latent_norm_eps.value_or(config.rms_norm_eps)};
  shape.indexer = {.num_heads = config.index_num_heads,
                   .head_dim = config.index_head_dim,
                   .rope_head_dim = config.qk_rope_head_dim,
                   .top_k = config.index_topk,
                   .rope_style = config.indexer_rope_interleave ? RopeStyle::kInterleaved
                                                                : RopeStyle::kHalfSplit};
  shape.moe = {.num_experts = config.num_experts,
               .experts_per_token = config.num_experts_per_token,
               .num_groups = config.num_groups,
               .topk_groups = config.topk_groups,
               .routed_scaling_factor = config.routed_scaling_factor,
               .norm_topk_prob = config.norm_topk_prob};
  return shape;
}

Model Model::load(const Checkpoint& checkpoint, const ModelOptions& options) {
  if (const auto eps = options.latent_norm_eps; eps && !(std::isfinite(*eps) && *eps > 0)) {
    throw expectation_error("latent norm epsilon", "a finite number above 0",
                            fmt::format("{}", *eps));
  }
  Model model;
  model.config_ = checkpoint.config();
  check_index_topk(options.index_topk, model.config_.num_layers);
  model.options_ = options;
  model.shape_ = block_shape(model.config_, options.latent_norm_eps);
  model.rope_ = rope_frequencies(model.config_);
  model.rope_.inv_freq = model.rope_.inv_freq.to(options.device);
  model.weights_ = load_weights(checkpoint, {.device = options.device, .dtype = options.dtype});
  return model;
}

Pattern Model::baseline() const {
  for (int layer = 0; layer < num_layers(); ++layer) {
    if (!has_indexer(layer)) return config_.schedule;
  }
  return Pattern::full(num_layers());
}

void Model::check_pattern(const Pattern& pattern) const {
  if (pattern.num_layers() != num_layers()) {
    throw expectation_error("pattern", fmt::format("{} layers", num_layers()),
                            fmt::format("{}", pattern.num_layers()));
  }
  require_indexers(pattern, [this](int layer) { return has_indexer(layer); });
}

CacheShape Model::cache_shape() const {
  return {.num_layers = num_layers(),
          .latent_dim = config_.kv_lora_rank + config_.qk_rope_head_dim,
          .index_head_dim = config_.index_head_dim,
          .dtype = options_.dtype,
          .device = options_.device};
}

SequenceCache Model::make_cache(const Pattern& pattern, std::int64_t capacity) const {
  check_pattern(pattern);
  return SequenceCache(cache_shape(), pattern, capacity);
}

BlockCache Model::make_layer_cache(LayerRole role, std::int64_t capacity) const {
  return make_block_cache(cache_shape(), role, capacity);
}

at::Tensor Model::embed(const at::Tensor& tokens) const {
  const c10::InferenceMode guard;
  return at::embedding(weights_.embedding, tokens.to(options_.device));
}

at::Tensor Model::run_layer(int layer, const at::Tensor& hidden, std::int64_t first_position,
                            BlockCache& cache, const IndexSet& source_set,
                            IndexSet* own_set) const {
  const c10::InferenceMode guard;
  const auto rope = make_rope_table(rope_, first_position, hidden.size(0));
  auto shape = shape_;
  if (!options_.index_topk.empty()) shape.indexer.top_k = options_.index_topk[layer];
  return block_forward(hidden, first_position, weights_.blocks[layer], shape, rope, cache,
                       source_set, own_set);
}

at::Tensor Model::attention_query(int layer, const at::Tensor& hidden,
                                  std::int64_t first_position) const {
  const c10::InferenceMode guard;
  const auto rope = make_rope_table(rope_, first_position, hidden.size(0));
  return indexcache::attention_query(hidden, weights_.blocks[layer], shape_, rope);
}

at::Tensor Model::core_attention(int layer, const at::Tensor& query, std::int64_t first_position,
                                 const BlockCache& cache, const IndexSet& index_set) const {
  const c10::InferenceMode guard;
  return indexcache::core_attention(query, first_position, weights_.blocks[layer], shape_, cache,
                                    index_set);
}

IndexerProjected Model::index_inputs(int layer, const at::Tensor& hidden,
                                     std::int64_t first_position) const {
  const c10::InferenceMode guard;
  const auto rope = make_rope_table(rope_, first_position, hidden.size(0));
  return indexcache::index_inputs(hidden, weights_.blocks[layer], shape_, rope);
}

at::Tensor Model::forward(const at::Tensor& tokens, SequenceCache& cache, std::int64_t chunk,
                          const IndexObserver& observer) const {
  const c10::InferenceMode guard;
  const auto& pattern = cache.pattern();
  const auto num_tokens = tokens.size(0);
  if (cache.length() + num_tokens > cache.capacity()) {
    throw expectation_error("context", fmt::format("at most {} tokens", cache.capacity()),
                            fmt::format("{}", cache.length() + num_tokens));
  }
  std::vector<at::Tensor> outputs;
  for (std::int64_t begin = 0; begin < num_tokens; begin += chunk) {
    const auto count = std::min(chunk, num_tokens - begin);
    const auto first_position = cache.length();
    auto hidden = embed(tokens.narrow(0, begin, count));
    std::vector<IndexSet> index_sets(num_layers());  // alive while a later layer reads them
    for (int layer = 0; layer < num_layers(); ++layer) {
      const bool full = pattern.is_full(layer);
      const auto source_set = full ? IndexSet() : index_sets[pattern.source(layer)];
      IndexSet own_set;
      const auto input = hidden;
      hidden = run_layer(layer, input, first_position, cache.layer(layer), source_set, &own_set);
      if (full && observer) observer({layer, first_position, input, own_set.indices()});
      if (full && pattern.last_reader(layer) > layer) index_sets[layer] = own_set;
      if (!full && pattern.last_reader(pattern.source(layer)) == layer) {
        index_sets[pattern.source(layer)] = {};
      }
    }
    cache.advance(count);
    outputs.push_back(hidden);
  }
  return outputs.size() == 1 ? outputs[0] : at::cat(outputs);
}

at::Tensor Model::logits(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  const TimedSpan span("head");
  const auto x = rms_norm(hidden, weights_.final_norm, config_.rms_norm_eps);
  return at::linear(x, weights_.head).to(at::kFloat);
}

at::Tensor Model::token_losses(const at::Tensor& hidden, const at::Tensor& targets) const {
  const c10::InferenceMode guard;
  std::vector<at::Tensor> losses;
  for (std::int64_t begin = 0; begin < hidden.size(0); begin += kLossChunk) {
    const auto count = std::min(kLossChunk, hidden.size(0) - begin);
    losses.push_back(at::cross_entropy_loss(logits(hidden.narrow(0, begin, count)),
                                            targets.narrow(0, begin, count).to(options_.device), {},
                                            /*reduction=*/at::Reduction::None)
                         .cpu());
  }
  return at::cat(losses);
}

}  // namespace indexcache
