#include "indexcache/train/batches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "indexcache/base/error.h"
#include "support/thrown.h"
#include "train/tiny_run.h"

namespace indexcache {
namespace {

using testing::kTinyWords;
using testing::tiny_run_json;
using testing::tiny_stage;
using testing::tiny_text;
using testing::tiny_tokenizer;

RunConfig config_of(double retrieval_share, std::int64_t context = 64) {
  auto json = tiny_run_json({tiny_stage("lm", 1e-2, 500, context)});
  json["data"]["retrieval_share"] = retrieval_share;
  json["data"]["answer_weight"] = 3;
  return parse_run_config(json, "test");
}

TEST(Batches, AreFunctionsOfSeedAndPlace) {
  const auto tokenizer = tiny_tokenizer(kTinyWords);
  const auto text = tiny_text(tokenizer, 5000);
  const auto config = config_of(0.5);
  const BatchSource one(config, tokenizer, text), two(config, tokenizer, text);
  const auto third = one.make({.stage = 0, .phase = 0, .step = 3});
  one.make({.stage = 0, .phase = 0, .step = 9});
  EXPECT_EQ(third.inputs, two.make({.stage = 0, .phase = 0, .step = 3}).inputs);
  EXPECT_NE(third.inputs, two.make({.stage = 0, .phase = 0, .step = 4}).inputs);
  auto other = config;
  other.seed = 8;
  EXPECT_NE(third.inputs, BatchSource(other, tokenizer, text).make({.step = 3}).inputs);
}

TEST(Batches, TargetsAreTheNextTokensAndWeightsSumToOne) {
  const auto tokenizer = tiny_tokenizer(kTinyWords);
  const auto text = tiny_text(tokenizer, 5000);
  const auto config = config_of(0.5);
  const BatchSource source(config, tokenizer, text);
  bool answers = false;
  for (int step = 0; step < 10; ++step) {
    const auto batch = source.make({.step = step});
    for (std::size_t row = 0; row < 4; ++row) {
      for (std::size_t t = 0; t + 1 < 64; ++t) {
        ASSERT_EQ(batch.targets[row * 64 + t], batch.inputs[row * 64 + t + 1]);
      }
    }
    EXPECT_NEAR(std::accumulate(batch.weights.begin(), batch.weights.end(), 0.0), 1, 1e-5);
    for (std::size_t i = 0; i < batch.answers.size(); ++i) {
      if (batch.answers[i] == 0) continue;
      answers = true;
      const auto id = static_cast<std::int32_t>(batch.targets[i]);
      EXPECT_EQ(tokenizer.decode(std::span(&id, 1)).size(), 3u);  // three digits, one token
      EXPECT_NEAR(batch.weights[i] / batch.weights[0], batch.answers[0] ? 1 : 3, 1e-4);
    }
  }
  EXPECT_TRUE(answers);
}

// One pass over the text shows every window once.
TEST(Batches, WindowsDoNotRepeatWithinAPass) {
  const auto tokenizer = tiny_tokenizer(kTinyWords);
  TokenStream text;
  text.tokens.resize(64 * 40 + 30);
  std::iota(text.tokens.begin(), text.tokens.end(), 0);
  const auto config = config_of(0);
  const BatchSource source(config, tokenizer, text);
  std::set<std::int64_t> starts;
  const std::int64_t windows = (static_cast<std::int64_t>(text.tokens.size()) - 65) / 64;
  for (std::int64_t step = 0; step < windows / 4; ++step) {
    const auto batch = source.make({.step = step});
    for (std::size_t row = 0; row < 4; ++row) {
      EXPECT_TRUE(starts.insert(batch.inputs[row * 64]).second);
    }
  }
  std::int64_t previous = -64;
  for (const auto start : starts) {
    EXPECT_EQ((start - *starts.begin()) % 64, 0);
    EXPECT_GE(start - previous, 64);
    previous = start;
  }
}

TEST(Batches, ShortTextAndLargeVocabulariesAreErrors) {
  const auto tokenizer = tiny_tokenizer(kTinyWords);
  const auto config = config_of(0);
  TokenStream text{.tokens = std::vector<std::int32_t>(64), .document_starts = {0}};
  EXPECT_THAT(testing::thrown<InputError>([&] { BatchSource(config, tokenizer, text); }),
              ::testing::HasSubstr("65"));
  text.tokens.resize(1000);
  auto small = config;
  small.model.vocab_size = 300;
  EXPECT_THAT(testing::thrown<InputError>([&] { BatchSource(small, tokenizer, text); }),
              ::testing::HasSubstr("300"));
}

TEST(BatchRows, AreEvenAndCoverTheStep) {
  for (const int processes : {1, 2, 3, 5}) {
    for (const std::int64_t sequences : {5, 6, 7, 12}) {
      std::int64_t next = 0;
      for (int rank = 0; rank < processes; ++rank) {
        const auto rows = rows_of(sequences, rank, processes);
        EXPECT_EQ(rows.first, next);
        EXPECT_GE(rows.count, sequences / processes);
        EXPECT_LE(rows.count, sequences / processes + 1);
        next += rows.count;
      }
      EXPECT_EQ(next, sequences);
    }
  }
}

}  // namespace
}  // namespace indexcache
