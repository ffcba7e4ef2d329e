// What the verbs that train share.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>

#include "indexcache/distributed/communicator.h"
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
};

// This process's part in a run: the device it computes on and the group it belongs to, as torchrun's
// variables say; alone without them. Each process of a machine takes the CUDA device of its local
// rank.
struct TrainingProcess {
  explicit TrainingProcess(const TrainingArguments& arguments);  // applies --threads
  bool speaks() const { return group.rank() == 0; }  // one process of a group does, for all

  at::Device device;
  Communicator group;
};

// `process` must outlive the run. What it starts from is the caller's to add.
TrainingRun make_run(const TrainingArguments& arguments, RunConfig config,
                     const std::filesystem::path& tokenizer_folder, const TrainingProcess& process);

// Reads the text and trains, with a progress line a stage.
void run_training(const TrainingArguments& arguments, const TrainingRun& run,
                  const Tokenizer& tokenizer);

}  // namespace indexcache::cli
