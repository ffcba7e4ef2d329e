#include "indexcache/checkpoint/summary.h"

#include <utility>

#include "indexcache/checkpoint/tensor_table.h"

namespace indexcache {
namespace {

constexpr std::int64_t kBf16Bytes = 2;

constexpr std::pair<Part, std::string_view> kPartNames[] = {
    {Part::kEmbeddings, "embeddings and head"},
    {Part::kAttention, "attention"},
    {Part::kIndexers, "indexers"},
    {Part::kDenseMlp, "dense MLPs"},
    {Part::kRouters, "routers"},
    {Part::kSharedExperts, "shared experts"},
    {Part::kRoutedExperts, "routed experts"},
    {Part::kNorms, "norms"},
    {Part::kUnusedIndexers, "indexers of Shared layers, unused"},
    {Part::kMtpLayers, "multi-token prediction, skipped"},
    {Part::kOther, "of no known use"},
};

bool is_used(Part part) {
  return part != Part::kUnusedIndexers && part != Part::kMtpLayers && part != Part::kOther;
}

}  // namespace

std::string_view part_name(Part part) {
  for (const auto& [known, name] : kPartNames) {
    if (known == part) return name;
  }
  return "";
}

Part part_of(std::string_view name, const ModelConfig& config) {
  if (name.starts_with("model.embed_tokens.") || name.starts_with("lm_head.")) {
    return Part::kEmbeddings;
  }
  if (name == "model.norm.weight") return Part::kNorms;
  const auto tensor = parse_layer_tensor(name);
  if (!tensor) return Part::kOther;
  const auto [layer, suffix] = *tensor;
  if (layer >= config.num_layers) return Part::kMtpLayers;
  if (suffix.starts_with("self_attn.indexer.")) {
    return config.schedule.is_full(layer) ? Part::kIndexers : Part::kUnusedIndexers;
  }
  if (suffix.starts_with("self_attn.")) return Part::kAttention;
  if (suffix.starts_with("mlp.shared_experts.")) return Part::kSharedExperts;
  if (suffix.starts_with("mlp.experts.")) return Part::kRoutedExperts;
  if (suffix.starts_with("mlp.gate.")) return Part::kRouters;
  if (suffix.starts_with("mlp.")) return Part::kDenseMlp;
  return suffix.ends_with("layernorm.weight") ? Part::kNorms : Part::kOther;
}

ModelSummary summarize(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::map<Part, PartSummary> parts;
  for (const auto& name : checkpoint.names()) {
    const auto& view = checkpoint.view(name);
    auto& part = parts[part_of(name, config)];
    part.bytes += static_cast<std::int64_t>(view.bytes.size());
    const bool is_scale =
        name.ends_with(kScaleSuffix) &&
        checkpoint.has(std::string_view(name).substr(0, name.size() - kScaleSuffix.size()));
    if (is_scale) continue;
    ++part.tensors;
    part.parameters += view.num_elements();
    part.parameters_by_dtype[std::string(dtype_name(view.dtype))] += view.num_elements();
  }

  ModelSummary summary;
  for (auto& [part, counted] : parts) {
    counted.part = part;
    summary.stored_parameters += counted.parameters;
    summary.stored_bytes += counted.bytes;
    if (is_used(part)) {
      summary.model_parameters += counted.parameters;
      summary.model_bytes += counted.bytes;
    }
    summary.parts.push_back(std::move(counted));
  }
  const auto idle_experts = [&](std::int64_t all) {
    return all / config.num_experts * (config.num_experts - config.num_experts_per_token);
  };
  summary.active_parameters = summary.model_parameters;
  for (const auto& part : summary.parts) {
    if (part.part == Part::kRoutedExperts) {
      summary.active_parameters -= idle_experts(part.parameters);
    }
  }
  // A tied embedding is the head too, which every token uses.
  if (!config.tie_word_embeddings) {
    summary.active_parameters -= (config.vocab_size - 1) * config.hidden_size;
  }
  return summary;
}

TokenBytes cached_bytes_per_token(const ModelConfig& config, const Pattern& schedule) {
  return {
      .latents = config.num_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * kBf16Bytes,
      .index_keys = schedule.num_full() * config.index_head_dim * kBf16Bytes};
}

}  // namespace indexcache
