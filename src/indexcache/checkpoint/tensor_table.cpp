#include "indexcache/checkpoint/tensor_table.h"

#include <fmt/format.h>

#include <charconv>

namespace indexcache {
namespace {

void add_mlp(std::vector<TensorSpec>& tensors, const std::string& prefix, std::int64_t hidden,
             std::int64_t intermediate) {
  tensors.push_back({prefix + ".gate_proj.weight", {intermediate, hidden}});
  tensors.push_back({prefix + ".up_proj.weight", {intermediate, hidden}});
  tensors.push_back({prefix + ".down_proj.weight", {hidden, intermediate}});
}

}  // namespace

std::string layer_tensor(int layer, std::string_view suffix) {
  return fmt::format("model.layers.{}.{}", layer, suffix);
}

std::optional<LayerTensor> parse_layer_tensor(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  const char* const last = name.data() + name.size();
  int layer = 0;
  const auto [end, error] = std::from_chars(name.data(), last, layer);
  if (error != std::errc() || end == last || *end != '.' || layer < 0) return std::nullopt;
  name.remove_prefix(static_cast<std::size_t>(end + 1 - name.data()));
  return LayerTensor{layer, name};
}

std::vector<TensorSpec> outer_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> tensors = {
      {"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}},
      {"model.norm.weight", {config.hidden_size}}};
  if (!config.tie_word_embeddings) {
    tensors.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  }
  return tensors;
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& c, int layer) {
  const auto name = [&](const char* suffix) { return layer_tensor(layer, suffix); };
  std::vector<TensorSpec> tensors = {
      {name("input_layernorm.weight"), {c.hidden_size}},
      {name("self_attn.q_a_proj.weight"), {c.q_lora_rank, c.hidden_size}},
      {name("self_attn.q_a_layernorm.weight"), {c.q_lora_rank}},
      {name("self_attn.q_b_proj.weight"), {c.num_heads * c.qk_head_dim(), c.q_lora_rank}},
      {name("self_attn.kv_a_proj_with_mqa.weight"),
       {c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size}},
      {name("self_attn.kv_a_layernorm.weight"), {c.kv_lora_rank}},
      {name("self_attn.kv_b_proj.weight"),
       {c.num_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank}},
      {name("self_attn.o_proj.weight"), {c.hidden_size, c.num_heads * c.v_head_dim}},
      {name("post_attention_layernorm.weight"), {c.hidden_size}}};
  if (c.mlp_kinds[layer] == MlpKind::kDense) {
    add_mlp(tensors, name("mlp"), c.hidden_size, c.intermediate_size);
    return tensors;
  }
  tensors.push_back({name("mlp.gate.weight"), {c.num_experts, c.hidden_size}});
  tensors.push_back({name("mlp.gate.e_score_correction_bias"), {c.num_experts}});
  if (c.num_shared_experts > 0) {
    add_mlp(tensors, name("mlp.shared_experts"), c.hidden_size,
            c.num_shared_experts * c.moe_intermediate_size);
  }
  return tensors;
}

std::vector<TensorSpec> indexer_tensors(const ModelConfig& c, int layer) {
  const auto name = [&](const char* suffix) {
    return layer_tensor(layer, fmt::format("self_attn.indexer.{}", suffix));
  };
  return {{name("wq_b.weight"), {c.index_num_heads * c.index_head_dim, c.q_lora_rank}},
          {name("wk.weight"), {c.index_head_dim, c.hidden_size}},
          {name("k_norm.weight"), {c.index_head_dim}},
          {name("k_norm.bias"), {c.index_head_dim}},
          {name("weights_proj.weight"), {c.index_num_heads, c.hidden_size}}};
}

std::vector<TensorSpec> expert_tensors(const ModelConfig& c, int layer, ExpertLayout layout) {
  std::vector<TensorSpec> tensors;
  if (c.mlp_kinds[layer] == MlpKind::kDense) return tensors;
  const auto width = c.moe_intermediate_size;
  if (layout == ExpertLayout::kFused) {
    tensors.push_back({layer_tensor(layer, "mlp.experts.gate_up_proj"),
                       {c.num_experts, 2 * width, c.hidden_size}});
    tensors.push_back(
        {layer_tensor(layer, "mlp.experts.down_proj"), {c.num_experts, c.hidden_size, width}});
    return tensors;
  }
  for (std::int64_t expert = 0; expert < c.num_experts; ++expert) {
    add_mlp(tensors, layer_tensor(layer, fmt::format("mlp.experts.{}", expert)), c.hidden_size,
            width);
  }
  return tensors;
}

}  // namespace indexcache
