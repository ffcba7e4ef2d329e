// What tests of training runs share: a text, a tokenizer, runs in folders of their own.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "indexcache/base/file.h"
#include "indexcache/train/trainer.h"
#include "train/tiny_run.h"

namespace indexcache::testing {

using nlohmann::json;

class TrainerTest : public ::testing::Test {
 protected:
  TrainingRun run(const json& config, const std::string& name,
                  RunStart start = RunStart::kNew) const {
    return {.config = parse_run_config(config, "test"),
            .folder = folder_.path() / name,
            .tokenizer_folder = tokenizer_folder_.path(),
            .start = start};
  }
  void train_quietly(const TrainingRun& run) const {
    train(run, tokenizer_, text_, [](const TrainingProgress&) {});
  }
  std::vector<json> curves(const std::string& name) const {
    std::ifstream file(folder_.path() / name / "curves.jsonl");
    std::vector<json> records;
    for (std::string line; std::getline(file, line);) records.push_back(json::parse(line));
    return records;
  }
  std::string weights(const std::string& name) const {
    return read_file(folder_.path() / name / "model" / "model.safetensors");
  }

  TemporaryFolder folder_;
  TokenizerFolder tokenizer_folder_;
  Tokenizer tokenizer_ = tiny_tokenizer(kTinyWords);
  TokenStream text_ = tiny_text(tokenizer_, 20'000);
};

// Records without what the clock says.
inline std::vector<json> untimed(std::vector<json> records) {
  for (auto& record : records) {
    record.erase("seconds");
    record.erase("tokens_per_second");
  }
  return records;
}

// Stops a run after `steps` steps as a kill would: at once, with whatever is on the disk.
struct Killed {};
inline void train_for(const TrainingRun& run, int steps, const Tokenizer& tokenizer,
                      const TokenStream& text) {
  try {
    train(run, tokenizer, text, [&](const TrainingProgress&) {
      if (--steps == 0) throw Killed();
    });
  } catch (const Killed&) {
  }
}

}  // namespace indexcache::testing
