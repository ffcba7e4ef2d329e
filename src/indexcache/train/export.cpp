#include "indexcache/train/export.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

std::vector<float> values_of(const at::Tensor& tensor) {
  const auto host = tensor.cpu().contiguous();
  const auto* data = host.const_data_ptr<float>();
  return {data, data + host.numel()};
}

class Exporter {
 public:
  Exporter(const RunConfig& config) : config_(config) {}

  void add(const Parameter& parameter) {
    const auto& name = parameter.name;
    const auto split = name.find("experts.gate_up_proj");
    if (split != std::string::npos) {
      const auto width = config_.model.moe_intermediate_size;
      for_each_expert(parameter, split, [&](const std::string& prefix, const at::Tensor& expert) {
        push(prefix + "gate_proj.weight", expert.narrow(0, 0, width), parameter.storage);
        push(prefix + "up_proj.weight", expert.narrow(0, width, width), parameter.storage);
      });
    } else if (const auto down = name.find("experts.down_proj");
               down != std::string::npos && parameter.shape.size() == 3) {
      for_each_expert(parameter, down, [&](const std::string& prefix, const at::Tensor& expert) {
        push(prefix + "down_proj.weight", expert, parameter.storage);
      });
    } else {
      push(name, *parameter.tensor, parameter.storage);
    }
  }

  std::vector<OutputTensor> take() { return std::move(tensors_); }

 private:
  template <typename Body>
  void for_each_expert(const Parameter& parameter, std::size_t split, const Body& body) {
    const auto prefix = parameter.name.substr(0, split) + "experts.";
    for (std::int64_t expert = 0; expert < parameter.shape[0]; ++expert) {
      body(fmt::format("{}{}.", prefix, expert), (*parameter.tensor)[expert]);
    }
  }

  void push(const std::string& name, const at::Tensor& tensor, ParameterStorage storage) {
    auto dtype = DType::kBF16;
    if (storage == ParameterStorage::kFp32) dtype = DType::kF32;
    if (storage == ParameterStorage::kFp8 && config_.export_dtype == ExportDType::kFp8) {
      dtype = DType::kF8E4M3;
    }
    tensors_.push_back(
        {.name = name, .dtype = dtype, .shape = tensor.sizes().vec(), .values = [tensor] {
           return values_of(tensor);
         }});
  }

  const RunConfig& config_;
  std::vector<OutputTensor> tensors_;
};

bool stores_indexer(const RunConfig& config, int layer) {
  return config.unused_indexers == UnusedIndexers::kKeep || config.pattern.is_full(layer);
}

}  // namespace

ModelConfig export_config(const RunConfig& config) {
  auto model = config.model;
  if (config.pattern != model.schedule || !config.pattern.is_nearest()) {
    set_schedule(model, config.pattern, config.routed_keys);
  }
  if (model.num_mtp_layers > 0) model.json["num_nextn_predict_layers"] = model.num_mtp_layers = 0;
  model.json.erase("dtype");
  model.json["torch_dtype"] = "bfloat16";
  if (config.export_dtype == ExportDType::kBf16) return model;

  auto kept = nlohmann::json::array({"lm_head", "model.embed_tokens"});
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const auto prefix = fmt::format("model.layers.{}.", layer);
    kept.push_back(prefix + "self_attn.kv_a_proj_with_mqa");
    if (stores_indexer(config, layer)) {
      kept.push_back(prefix + "self_attn.indexer.weights_proj");
    }
    if (model.mlp_kinds[static_cast<std::size_t>(layer)] == MlpKind::kSparse) {
      kept.push_back(prefix + "mlp.gate");
    }
  }
  model.quantization = QuantizationConfig{};
  model.json["quantization_config"] = {{"quant_method", "fp8"},
                                       {"fmt", "e4m3"},
                                       {"activation_scheme", "dynamic"},
                                       {"weight_block_size", {128, 128}},
                                       {"modules_to_not_convert", kept}};
  return model;
}

std::vector<OutputTensor> export_tensors(const RunConfig& config,
                                         const std::vector<Parameter>& parameters) {
  Exporter exporter(config);
  for (const auto& parameter : parameters) {
    if (parameter.part == ParameterPart::kIndexer && !stores_indexer(config, parameter.layer)) {
      continue;
    }
    exporter.add(parameter);
  }
  return exporter.take();
}

void export_model(const std::filesystem::path& folder, const RunConfig& config,
                  const std::vector<Parameter>& parameters,
                  const std::filesystem::path& tokenizer_folder) {
  write_model_folder(folder, export_config(config), export_tensors(config, parameters),
                     tokenizer_folder, {.shard_bytes = config.shard_bytes});
}

}  // namespace indexcache
