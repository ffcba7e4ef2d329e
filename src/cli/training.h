// What the verbs that train share.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>

#include "indexcache/tokenizer/tokenizer.h"
#include "indexcache/train/trainer.h"

namespace indexcache::cli {

// --data FILE --out FOLDER [--device cpu|cuda] [--minutes N] [--resume] [--threads N]
struct TrainingArguments {
  std::filesystem::path data, out;
  std::string device = "cpu";
  std::optional<double> minutes;
  bool resume = false;
  int threads = 0;  // 0: all cores

  void add_to(CLI::App& app);
  // Applies --threads. The rest of the run is the caller's.
  TrainingRun make_run(RunConfig config, const std::filesystem::path& tokenizer_folder) const;
};

// Reads the text and trains, with a progress line a stage.
void run_training(const TrainingArguments& arguments, const TrainingRun& run,
                  const Tokenizer& tokenizer);

}  // namespace indexcache::cli
