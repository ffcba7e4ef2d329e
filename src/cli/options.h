// Options that several verbs share, spelled and checked once.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/data/text.h"
#include "indexcache/model/model.h"

namespace indexcache::cli {

// MODEL [--device cpu|cuda] [--dtype fp32|bf16] [--latent-norm-eps X] [--threads N]
struct ModelArguments {
  std::filesystem::path folder;
  std::string device = "cpu";
  std::string dtype = "fp32";
  std::optional<double> latent_norm_eps;
  int threads = 0;  // 0: all cores

  void add_to(CLI::App& app);
  // Applies --threads, opens the checkpoint (printing its notices to stderr), loads the weights.
  Checkpoint open() const;
  // `index_topk`: as in ModelOptions.
  Model load(const Checkpoint& checkpoint, std::vector<std::int64_t> index_topk = {}) const;
};

// --text FILE [--context N] [--sequences N] [--seed N] [--tasks SHARE]
struct TextArguments {
  std::filesystem::path file;
  SequenceOptions sequences;

  void add_to(CLI::App& app);
  std::vector<Sequence> read(const Tokenizer& tokenizer) const;
};

void print_notices(const Checkpoint& checkpoint);  // to stderr

at::Device parse_device(const std::string& name);  // "cpu" or "cuda"

// The pattern that --pattern TEXT names for a model: "model", the grammar of Pattern::parse, or
// FILE[:KEEP] (a pattern file). With a Model, its indexers are checked too.
Pattern resolve_pattern(const std::string& text, const ModelConfig& config);
Pattern resolve_pattern(const std::string& text, const Model& model);

// tokenizer.json of a folder, for a model of `config`. Throws InputError if it has ids beyond the
// model's vocabulary.
Tokenizer read_tokenizer(const std::filesystem::path& folder, const ModelConfig& config);

// Takes numbers from `low` to `high`; CLI::Range takes "nan" too.
CLI::Validator between(double low, double high);

}  // namespace indexcache::cli
