// The golden models of tests/golden/models: tiny checkpoints and what transformers computes from
// them under a pattern. tools/make_goldens.py makes them.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "indexcache/base/file.h"
#include "indexcache/checkpoint/safetensors.h"
#include "indexcache/model/model.h"

namespace indexcache::testing {

inline std::filesystem::path golden_folder() {
  return std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "tests/golden/models";
}

struct Expectation {
  std::string golden, file;
  std::string pattern;  // "model": the checkpoint's own
  std::optional<double> latent_norm_eps;
  double index_margin = 0, router_margin = 0;
  at::Tensor tokens;                     // [T] int64
  at::Tensor logits;                     // [T, vocab] fp32
  std::map<int, at::Tensor> index_sets;  // Full layer -> [T, k] int32

  std::filesystem::path folder() const { return golden_folder() / golden; }
};

inline at::Tensor copy_of(const TensorView& view) {
  const auto type = view.dtype == DType::kF32   ? at::kFloat
                    : view.dtype == DType::kI32 ? at::kInt
                                                : at::kLong;
  // from_blob wants a mutable pointer; the clone is all that leaves.
  auto* data = const_cast<std::byte*>(view.bytes.data());
  return at::from_blob(data, view.shape, at::TensorOptions().dtype(type)).clone();
}

// All expectations of a golden. Throws if it, or one of its files, is missing.
inline std::vector<Expectation> read_golden(const std::string& name) {
  const auto folder = golden_folder() / name;
  const auto description = nlohmann::json::parse(read_file(folder / "golden.json"));
  std::vector<Expectation> out;
  for (const auto& json : description.at("expectations")) {
    Expectation expected;
    expected.golden = name;
    expected.file = json.at("file");
    expected.pattern = json.at("pattern");
    if (!json.at("latent_norm_eps").is_null()) expected.latent_norm_eps = json["latent_norm_eps"];
    expected.index_margin = json.at("index_margin");
    expected.router_margin = json.at("router_margin");
    const MappedFile file(folder / expected.file);
    for (const auto& [tensor, view] : parse_safetensors(file.bytes(), expected.file)) {
      if (tensor == "tokens") expected.tokens = copy_of(view);
      if (tensor == "logits") expected.logits = copy_of(view);
      if (tensor.starts_with("index_set.")) {
        expected.index_sets[std::stoi(tensor.substr(10))] = copy_of(view);
      }
    }
    out.push_back(std::move(expected));
  }
  return out;
}

inline Pattern pattern_of(const std::string& text, const Model& model) {
  return text == "model" ? model.config().schedule : Pattern::parse(text, model.num_layers());
}

struct Outcome {
  at::Tensor logits;                     // [T, vocab] fp32
  at::Tensor hidden;                     // [T, hidden]
  std::map<int, at::Tensor> index_sets;  // Full layer -> [T, k] int32
};

// Runs tokens through one cache: `calls` forward calls' token counts (empty: one call), each split
// into chunks of `chunk`.
inline Outcome run_model(const Model& model, const Pattern& pattern, const at::Tensor& tokens,
                         std::int64_t chunk, const std::vector<std::int64_t>& calls = {}) {
  auto cache = model.make_cache(pattern, tokens.size(0));
  std::map<int, std::vector<at::Tensor>> sets;
  std::vector<at::Tensor> hidden;
  const auto observe = [&](const IndexStep& step) { sets[step.layer].push_back(step.index_set); };
  std::int64_t begin = 0;
  for (const auto count : calls.empty() ? std::vector{tokens.size(0)} : calls) {
    hidden.push_back(model.forward(tokens.narrow(0, begin, count), cache, chunk, observe));
    begin += count;
  }
  EXPECT_EQ(begin, tokens.size(0));
  Outcome out;
  out.hidden = at::cat(hidden);
  out.logits = model.logits(out.hidden);
  for (const auto& [layer, rows] : sets) out.index_sets[layer] = at::cat(rows);
  return out;
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item().toDouble();
}

}  // namespace indexcache::testing
