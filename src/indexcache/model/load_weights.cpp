#include "indexcache/model/load_weights.h"

#include <ATen/ops/empty.h>

#include <string>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const WeightOptions& options)
      : checkpoint_(checkpoint), config_(checkpoint.config()), options_(options) {}

  at::Tensor tensor(const std::string& name, at::IntArrayRef shape) const {
    return read(name, shape, options_.dtype).to(options_.device);
  }

  at::Tensor fp32(const std::string& name, at::IntArrayRef shape) const {
    return read(name, shape, at::kFloat).to(options_.device);
  }

  BlockWeights block(int layer) const {
    BlockWeights weights;
    const auto hidden = config_.hidden_size;
    weights.input_norm = tensor(layer_tensor(layer, "input_layernorm.weight"), {hidden});
    weights.post_attention_norm =
        tensor(layer_tensor(layer, "post_attention_layernorm.weight"), {hidden});
    weights.mla = mla(layer);
    if (checkpoint_.has_indexer(layer) && config_.schedule.is_full(layer)) {
      weights.indexer = indexer(layer);
    }
    if (config_.mlp_kinds[layer] == MlpKind::kSparse) {
      weights.mlp = moe(layer);
    } else {
      weights.mlp = mlp(layer_tensor(layer, "mlp"), config_.intermediate_size);
    }
    return weights;
  }

 private:
  at::Tensor read(const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) const {
    auto out = at::empty(shape, dtype);
    const auto count = static_cast<std::size_t>(out.numel());
    if (dtype == at::kBFloat16) {
      checkpoint_.read_bf16(name, shape, {reinterpret_cast<std::uint16_t*>(out.data_ptr()), count});
    } else {
      INDEXCACHE_ASSERT(dtype == at::kFloat);
      checkpoint_.read(name, shape, {out.data_ptr<float>(), count});
    }
    return out;
  }

  MlaWeights mla(int layer) const {
    const auto& c = config_;
    const auto name = [&](const char* part) {
      return layer_tensor(layer, std::string("self_attn.") + part + ".weight");
    };
    return {
        .q_a_proj = tensor(name("q_a_proj"), {c.q_lora_rank, c.hidden_size}),
        .q_a_norm = tensor(name("q_a_layernorm"), {c.q_lora_rank}),
        .q_b_proj = tensor(name("q_b_proj"), {c.num_heads * c.qk_head_dim(), c.q_lora_rank}),
        .kv_a_proj = tensor(name("kv_a_proj_with_mqa"),
                            {c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size}),
        .kv_a_norm = tensor(name("kv_a_layernorm"), {c.kv_lora_rank}),
        .kv_b_proj = tensor(name("kv_b_proj"),
                            {c.num_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank}),
        .o_proj = tensor(name("o_proj"), {c.hidden_size, c.num_heads * c.v_head_dim})};
  }

  IndexerWeights indexer(int layer) const {
    const auto& c = config_;
    const auto name = [&](const char* part) {
      return layer_tensor(layer, std::string("self_attn.indexer.") + part);
    };
    return {
        .wq_b = tensor(name("wq_b.weight"), {c.index_num_heads * c.index_head_dim, c.q_lora_rank}),
        .wk = tensor(name("wk.weight"), {c.index_head_dim, c.hidden_size}),
        .k_norm_weight = fp32(name("k_norm.weight"), {c.index_head_dim}),
        .k_norm_bias = fp32(name("k_norm.bias"), {c.index_head_dim}),
        .weights_proj = fp32(name("weights_proj.weight"), {c.index_num_heads, c.hidden_size})};
  }

  MlpWeights mlp(const std::string& prefix, std::int64_t intermediate) const {
    const auto hidden = config_.hidden_size;
    return {.gate = tensor(prefix + ".gate_proj.weight", {intermediate, hidden}),
            .up = tensor(prefix + ".up_proj.weight", {intermediate, hidden}),
            .down = tensor(prefix + ".down_proj.weight", {hidden, intermediate})};
  }

  MoeWeights moe(int layer) const {
    const auto& c = config_;
    MoeWeights weights;
    weights.router = fp32(layer_tensor(layer, "mlp.gate.weight"), {c.num_experts, c.hidden_size});
    weights.selection_bias =
        fp32(layer_tensor(layer, "mlp.gate.e_score_correction_bias"), {c.num_experts});
    if (checkpoint_.has(layer_tensor(layer, "mlp.experts.gate_up_proj"))) {
      weights.experts_gate_up = tensor(layer_tensor(layer, "mlp.experts.gate_up_proj"),
                                       {c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size});
      weights.experts_down = tensor(layer_tensor(layer, "mlp.experts.down_proj"),
                                    {c.num_experts, c.hidden_size, c.moe_intermediate_size});
    } else {
      read_experts(layer, weights);
    }
    if (c.num_shared_experts > 0) {
      weights.shared = mlp(layer_tensor(layer, "mlp.shared_experts"),
                           c.num_shared_experts * c.moe_intermediate_size);
    }
    return weights;
  }

  // One tensor an expert and projection, into the stacked form.
  void read_experts(int layer, MoeWeights& weights) const {
    const auto& c = config_;
    const auto options = at::TensorOptions().dtype(options_.dtype).device(options_.device);
    const auto width = c.moe_intermediate_size;
    weights.experts_gate_up = at::empty({c.num_experts, 2 * width, c.hidden_size}, options);
    weights.experts_down = at::empty({c.num_experts, c.hidden_size, width}, options);
    for (std::int64_t expert = 0; expert < c.num_experts; ++expert) {
      const auto one = mlp(layer_tensor(layer, fmt::format("mlp.experts.{}", expert)), width);
      weights.experts_gate_up[expert].narrow(0, 0, width).copy_(one.gate);
      weights.experts_gate_up[expert].narrow(0, width, width).copy_(one.up);
      weights.experts_down[expert].copy_(one.down);
    }
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  WeightOptions options_;
};

}  // namespace

ModelWeights load_weights(const Checkpoint& checkpoint, const WeightOptions& options) {
  const auto& config = checkpoint.config();
  const Loader loader(checkpoint, options);
  ModelWeights weights;
  weights.embedding =
      loader.tensor("model.embed_tokens.weight", {config.vocab_size, config.hidden_size});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    weights.blocks.push_back(loader.block(layer));
  }
  weights.final_norm = loader.tensor("model.norm.weight", {config.hidden_size});
  weights.head = config.tie_word_embeddings
                     ? weights.embedding
                     : loader.tensor("lm_head.weight", {config.vocab_size, config.hidden_size});
  return weights;
}

}  // namespace indexcache
