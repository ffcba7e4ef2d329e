#include "indexcache/train/parameters.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "indexcache/checkpoint/checkpoint.h"

namespace indexcache {
namespace {

using Part = ParameterPart;
using Init = ParameterInit;
using Storage = ParameterStorage;

class List {
 public:
  List(const ModelConfig& config, const std::vector<bool>& has_indexer, ModelWeights& weights)
      : c_(config), has_indexer_(has_indexer), weights_(weights) {}

  std::vector<Parameter> make() {
    const std::vector<std::int64_t> table = {c_.vocab_size, c_.hidden_size};
    add("model.embed_tokens.weight", weights_.embedding, table);
    weights_.blocks.resize(static_cast<std::size_t>(c_.num_layers));
    for (layer_ = 0; layer_ < c_.num_layers; ++layer_) {
      block(weights_.blocks[static_cast<std::size_t>(layer_)]);
    }
    layer_ = -1;
    norm("model.norm.weight", weights_.final_norm, c_.hidden_size);
    add("lm_head.weight", weights_.head, table);
    return std::move(list_);
  }

 private:
  void add(const std::string& name, at::Tensor& tensor, std::vector<std::int64_t> shape,
           Storage storage = Storage::kBf16, Part part = Part::kModel, Init init = Init::kNormal) {
    list_.push_back({name, &tensor, std::move(shape), part, init, storage, layer_});
  }
  void norm(const std::string& name, at::Tensor& tensor, std::int64_t size) {
    add(name, tensor, {size}, Storage::kBf16, Part::kModel, Init::kOnes);
  }
  std::string name(const std::string& suffix) const { return layer_tensor(layer_, suffix); }

  void block(BlockWeights& block) {
    norm(name("input_layernorm.weight"), block.input_norm, c_.hidden_size);
    attention(block.mla);
    if (has_indexer_[static_cast<std::size_t>(layer_)]) indexer(block.indexer.emplace());
    norm(name("post_attention_layernorm.weight"), block.post_attention_norm, c_.hidden_size);
    if (c_.mlp_kinds[static_cast<std::size_t>(layer_)] == MlpKind::kSparse) {
      moe(block.mlp.emplace<MoeWeights>());
    } else {
      mlp("mlp", block.mlp.emplace<MlpWeights>(), c_.intermediate_size);
    }
  }

  void attention(MlaWeights& mla) {
    const auto weight = [&](const char* part) {
      return name(std::string("self_attn.") + part + ".weight");
    };
    add(weight("q_a_proj"), mla.q_a_proj, {c_.q_lora_rank, c_.hidden_size}, Storage::kFp8);
    norm(weight("q_a_layernorm"), mla.q_a_norm, c_.q_lora_rank);
    add(weight("q_b_proj"), mla.q_b_proj, {c_.num_heads * c_.qk_head_dim(), c_.q_lora_rank},
        Storage::kFp8);
    add(weight("kv_a_proj_with_mqa"), mla.kv_a_proj,
        {c_.kv_lora_rank + c_.qk_rope_head_dim, c_.hidden_size});
    norm(weight("kv_a_layernorm"), mla.kv_a_norm, c_.kv_lora_rank);
    add(weight("kv_b_proj"), mla.kv_b_proj,
        {c_.num_heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank}, Storage::kFp8);
    add(weight("o_proj"), mla.o_proj, {c_.hidden_size, c_.num_heads * c_.v_head_dim}, Storage::kFp8,
        Part::kModel, Init::kResidual);
  }

  void indexer(IndexerWeights& indexer) {
    const auto part = [&](const char* suffix) {
      return name(std::string("self_attn.indexer.") + suffix);
    };
    add(part("wq_b.weight"), indexer.wq_b, {c_.index_num_heads * c_.index_head_dim, c_.q_lora_rank},
        Storage::kFp8, Part::kIndexer);
    add(part("wk.weight"), indexer.wk, {c_.index_head_dim, c_.hidden_size}, Storage::kFp8,
        Part::kIndexer);
    add(part("k_norm.weight"), indexer.k_norm_weight, {c_.index_head_dim}, Storage::kRouting,
        Part::kIndexer, Init::kOnes);
    add(part("k_norm.bias"), indexer.k_norm_bias, {c_.index_head_dim}, Storage::kRouting,
        Part::kIndexer, Init::kZeros);
    add(part("weights_proj.weight"), indexer.weights_proj, {c_.index_num_heads, c_.hidden_size},
        Storage::kRouting, Part::kIndexer);
  }

  void mlp(const std::string& prefix, MlpWeights& mlp, std::int64_t width) {
    add(name(prefix + ".gate_proj.weight"), mlp.gate, {width, c_.hidden_size}, Storage::kFp8);
    add(name(prefix + ".up_proj.weight"), mlp.up, {width, c_.hidden_size}, Storage::kFp8);
    add(name(prefix + ".down_proj.weight"), mlp.down, {c_.hidden_size, width}, Storage::kFp8,
        Part::kModel, Init::kResidual);
  }

  void moe(MoeWeights& moe) {
    const auto width = c_.moe_intermediate_size;
    add(name("mlp.gate.weight"), moe.router, {c_.num_experts, c_.hidden_size}, Storage::kRouting);
    add(name("mlp.gate.e_score_correction_bias"), moe.selection_bias, {c_.num_experts},
        Storage::kFp32, Part::kSelectionBias, Init::kZeros);
    add(name("mlp.experts.gate_up_proj"), moe.experts_gate_up,
        {c_.num_experts, 2 * width, c_.hidden_size}, Storage::kFp8);
    add(name("mlp.experts.down_proj"), moe.experts_down, {c_.num_experts, c_.hidden_size, width},
        Storage::kFp8, Part::kModel, Init::kResidual);
    if (c_.num_shared_experts > 0) {
      mlp("mlp.shared_experts", moe.shared, c_.num_shared_experts * width);
    }
  }

  const ModelConfig& c_;
  const std::vector<bool>& has_indexer_;
  ModelWeights& weights_;
  int layer_ = -1;
  std::vector<Parameter> list_;
};

}  // namespace

std::vector<Parameter> list_parameters(const ModelConfig& config,
                                       const std::vector<bool>& has_indexer,
                                       ModelWeights& weights) {
  return List(config, has_indexer, weights).make();
}

void initialize(const std::vector<Parameter>& parameters, int num_layers, double deviation,
                std::uint64_t seed, at::Device device) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const double residual = deviation / std::sqrt(2.0 * num_layers);
  for (const auto& parameter : parameters) {
    auto value = at::empty(parameter.shape);
    switch (parameter.init) {
      case ParameterInit::kNormal:
        value.normal_(0, deviation, generator);
        break;
      case ParameterInit::kResidual:
        value.normal_(0, residual, generator);
        break;
      case ParameterInit::kOnes:
        value.fill_(1);
        break;
      case ParameterInit::kZeros:
        value.fill_(0);
        break;
    }
    *parameter.tensor = value.to(device);
  }
}

}  // namespace indexcache
