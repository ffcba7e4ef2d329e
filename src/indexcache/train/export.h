// Trained weights as a Hugging Face folder that transformers and the engines load.
#pragma once

#include <filesystem>
#include <vector>

#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/writer.h"
#include "indexcache/train/parameters.h"
#include "indexcache/train/run_config.h"

namespace indexcache {

// The config with the run's pattern as its schedule, without MTP layers, and with
// `quantization_config` for FP8; what stays bf16 stands in modules_to_not_convert:
// kv_a_proj_with_mqa, embeddings, head, routers, weights_proj.
ModelConfig export_config(const RunConfig& config);
// One tensor an expert and projection; norms, embeddings, head and routing in bf16, the selection
// bias in fp32, the other matrices in bf16 or FP8.
std::vector<OutputTensor> export_tensors(const RunConfig& config,
                                         const std::vector<Parameter>& parameters);
void export_model(const std::filesystem::path& folder, const RunConfig& config,
                  const std::vector<Parameter>& parameters,
                  const std::filesystem::path& tokenizer_folder);

}  // namespace indexcache
