#include "indexcache/eval/evaluate.h"

#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"
#include "indexcache/eval/report.h"
#include "support/random_model.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"
#include "support/tiny_tokenizer.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::thrown;

std::string running_text(std::uint64_t seed, int num_words) {
  std::mt19937_64 random(seed);
  const auto words = testing::made_up_words(150);
  std::string text;
  for (int i = 0; i < num_words; ++i) {
    text += (i % 13 == 12 ? ".\n" : " ") + words[draw_below(random, words.size())];
  }
  return text;
}

class EvaluateTest : public ::testing::Test {
 protected:
  EvaluateTest() {
    inputs_.context = 200;
    inputs_.windows = make_text_windows({{"x/1", running_text(1, 150)},
                                         {"x/2", running_text(2, 300)},
                                         {"y/1", running_text(3, 60)}},
                                        tokenizer_, 200, WindowChoice::kAll);
    inputs_.tasks = make_task_sets(tokenizer_.encode(running_text(4, 900)), tokenizer_,
                                   {.contexts = {300}, .num_prompts = 3, .num_keys = 2, .seed = 9});
  }

  // Logits [tokens - 1, vocab] in double by another way: one forward pass, softmax by hand.
  std::vector<std::vector<double>> log_probabilities(
      const Pattern& pattern, const std::vector<std::int32_t>& tokens) const {
    const auto length = static_cast<std::int64_t>(tokens.size()) - 1;
    SequenceCache cache = model_.make_cache(pattern, length);
    const auto ids = at::tensor(std::vector<std::int64_t>(tokens.begin(), tokens.end() - 1));
    const auto logits = model_.logits(model_.forward(ids, cache)).contiguous();
    const float* row = logits.const_data_ptr<float>();
    std::vector<std::vector<double>> out;
    for (std::int64_t t = 0; t < length; ++t, row += logits.size(1)) {
      std::vector<double> values(row, row + logits.size(1));
      double total = 0;
      for (const double value : values) total += std::exp(value);
      for (double& value : values) value -= std::log(total);
      out.push_back(std::move(values));
    }
    return out;
  }

  const Tokenizer tokenizer_ = testing::tiny_tokenizer(150);
  const testing::TemporaryFolder folder_;
  const Model model_ = testing::random_model(folder_.path(), tokenizer_.vocab_size());
  const Pattern full_ = Pattern::full(4), shared_ = Pattern::parse("FSSS", 4);
  EvalInputs inputs_;
};

TEST_F(EvaluateTest, BitsPerByteIsTheNegativeLogProbabilityOfTheTextByItsBytes) {
  double nats = 0;
  std::int64_t bytes = 0, tokens = 0;
  std::vector<double> by_bucket(2, 0.0);
  for (const auto& window : inputs_.windows) {
    const auto logs = log_probabilities(shared_, window.tokens);
    for (std::size_t t = 0; t < logs.size(); ++t) {
      const double nll = -logs[t][static_cast<std::size_t>(window.tokens[t + 1])];
      nats += nll;
      by_bucket[t / 128] += nll;
    }
    bytes += window.bytes;
    tokens += static_cast<std::int64_t>(logs.size());
  }
  const auto json = eval_json(inputs_, {{"baseline", evaluate(model_, {shared_}, inputs_)[0]}});
  const auto& language = json["patterns"][0]["language"];
  EXPECT_NEAR(language["bits_per_byte"]["value"], nats / std::log(2.0) / static_cast<double>(bytes),
              1e-5);
  EXPECT_NEAR(language["loss"]["value"], nats / static_cast<double>(tokens), 1e-5);
  EXPECT_EQ(json["text"]["bytes"], bytes);
  EXPECT_EQ(json["text"]["tokens"], tokens);

  std::int64_t in_first = 0;
  for (const auto& window : inputs_.windows) {
    in_first += std::min<std::int64_t>(128, static_cast<std::int64_t>(window.tokens.size()) - 1);
  }
  const auto& position = language["by_position"];
  ASSERT_EQ(position.size(), 2u);
  EXPECT_EQ(position[1]["begin"], 128);
  EXPECT_EQ(position[1]["end"], 200);
  EXPECT_NEAR(position[0]["loss"]["value"], by_bucket[0] / static_cast<double>(in_first), 1e-5);
  EXPECT_NEAR(position[1]["loss"]["value"], by_bucket[1] / static_cast<double>(tokens - in_first),
              1e-5);
  ASSERT_EQ(language["by_domain"].size(), 2u);
  EXPECT_EQ(language["by_domain"][1]["domain"], "y");
  EXPECT_EQ(language["by_domain"][1]["windows"], 1);
  EXPECT_TRUE(language["by_domain"][1]["bits_per_byte"]["standard_error"].is_null());
}

TEST_F(EvaluateTest, ALossThatIsNotFiniteIsRefusedWithItsPlace) {
  const auto refused = [&](const EvalInputs& inputs) {
    return thrown<InputError>([&] { evaluate(model_, {full_, shared_}, inputs); });
  };
  auto windows = inputs_, tasks = inputs_;
  windows.tasks.clear();
  tasks.windows.clear();
  auto& window = windows.windows[0];
  const auto broken = tokenizer_.token_id("<|endoftext|>");
  ASSERT_TRUE(broken.has_value());
  window.tokens[7] = *broken;
  {
    const c10::InferenceMode guard;
    model_.weights().embedding[*broken].fill_(std::numeric_limits<double>::infinity());
  }
  // Every window's first token is the broken one; put another there, to find the second.
  window.tokens[0] = window.tokens[1];
  EXPECT_THAT(refused(windows), HasSubstr("pattern F"));
  EXPECT_THAT(refused(windows),
              HasSubstr("the loss at position 7: expected a finite number, found nan"));
  {
    const c10::InferenceMode guard;
    model_.weights().embedding.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  EXPECT_THAT(refused(tasks), HasSubstr("the loss at position "));
}

TEST_F(EvaluateTest, APatternDiffersFromItselfByExactlyNothing) {
  // Run twice, not looked up: two evaluations.
  const auto first = evaluate(model_, {shared_}, inputs_)[0];
  const auto again = evaluate(model_, {shared_}, inputs_)[0];
  const auto json = eval_json(inputs_, {{"baseline", first}, {"again", again}});
  const auto& difference = json["patterns"][1]["language"]["bits_per_byte_difference"];
  EXPECT_EQ(difference["value"], 0.0);
  EXPECT_EQ(difference["standard_error"], 0.0);
  for (const auto& task : json["patterns"][1]["tasks"]) {
    EXPECT_EQ(task["accuracy_difference"]["value"], 0.0);
    EXPECT_EQ(task["loss_difference"]["value"], 0.0);
  }
}

TEST_F(EvaluateTest, FullIsTheBaselineAndOthersAreNot) {
  const auto scores =
      evaluate(model_, {model_.baseline(), Pattern::parse("full", 4), shared_}, inputs_);
  EXPECT_EQ(scores[0].bucket_nll, scores[1].bucket_nll);
  EXPECT_NE(scores[0].bucket_nll, scores[2].bucket_nll);
  const auto json =
      eval_json(inputs_, {{"baseline", scores[0]}, {"full", scores[1]}, {"s", scores[2]}});
  EXPECT_NE(json["patterns"][2]["language"]["loss_difference"]["value"], 0.0);
  EXPECT_FALSE(json["patterns"][0]["language"].contains("loss_difference"));
}

TEST_F(EvaluateTest, APatternsScoresDoNotDependOnItsCompany) {
  const auto together = evaluate(model_, {full_, shared_}, inputs_);
  const auto alone = evaluate(model_, {shared_}, inputs_);
  EXPECT_EQ(together[1].bucket_nll, alone[0].bucket_nll);
}

TEST_F(EvaluateTest, DifferencesCarryThePairedError) {
  const auto scores = evaluate(model_, {full_, shared_}, inputs_);
  const auto a = scores[0].window_nll(), b = scores[1].window_nll();
  double total = 0, tokens = 0, squares = 0;
  std::vector<double> sizes;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sizes.push_back(static_cast<double>(inputs_.windows[i].tokens.size()) - 1);
    total += b[i] - a[i];
    tokens += sizes[i];
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += std::pow(b[i] - a[i] - total / tokens * sizes[i], 2);
  }
  const auto n = static_cast<double>(a.size());
  const auto json = eval_json(inputs_, {{"baseline", scores[0]}, {"s", scores[1]}});
  const auto& difference = json["patterns"][1]["language"]["loss_difference"];
  EXPECT_NEAR(difference["value"], total / tokens, 1e-12);
  EXPECT_NEAR(difference["standard_error"], std::sqrt(n / (n - 1) * squares) / tokens, 1e-12);
}

// What another model's figures on the same inputs are paired with.
TEST_F(EvaluateTest, TheFiguresOfEveryWindowAndPromptMakeTheMeans) {
  const auto json = eval_json(inputs_, {{"baseline", evaluate(model_, {full_}, inputs_)[0]},
                                        {"shared", evaluate(model_, {shared_}, inputs_)[0]}});
  ASSERT_EQ(json["windows"].size(), inputs_.windows.size());
  EXPECT_EQ(json["windows"].back()["domain"], "y");
  for (const auto& pattern : json["patterns"]) {
    const std::vector<double> nll = pattern["language"]["each"]["nll"];
    ASSERT_EQ(nll.size(), inputs_.windows.size());
    double nats = 0, tokens = 0, bytes = 0;
    for (std::size_t i = 0; i < nll.size(); ++i) {
      nats += nll[i];
      tokens += json["windows"][i]["tokens"].get<double>();
      bytes += json["windows"][i]["bytes"].get<double>();
    }
    EXPECT_NEAR(pattern["language"]["loss"]["value"], nats / tokens, 1e-9);
    EXPECT_NEAR(pattern["language"]["bits_per_byte"]["value"], nats / std::log(2.0) / bytes, 1e-9);
    for (const auto& task : pattern["tasks"]) {
      const std::vector<double> right = task["each"]["right"], loss = task["each"]["loss"];
      ASSERT_EQ(right.size(), 3u);
      EXPECT_NEAR(task["accuracy"]["value"], (right[0] + right[1] + right[2]) / 3, 1e-9);
      EXPECT_NEAR(task["loss"]["value"], (loss[0] + loss[1] + loss[2]) / 3, 1e-9);
    }
  }
}

TEST_F(EvaluateTest, AnswersAreRightWhereTheyAreTheArgmax) {
  RetrievalPrompt prompt = inputs_.tasks[1].prompts[0];
  ASSERT_EQ(prompt.answers.size(), 2u);
  // The model's own choices in the answers' places, first to last: later ones see earlier ones.
  const auto set_right = [&](std::size_t question) {
    for (const auto position : prompt.answers[question]) {
      const auto logs = log_probabilities(full_, prompt.tokens)[static_cast<std::size_t>(position)];
      prompt.tokens[static_cast<std::size_t>(position) + 1] =
          static_cast<std::int32_t>(std::max_element(logs.begin(), logs.end()) - logs.begin());
    }
  };
  EXPECT_EQ(score_prompt(model_, full_, prompt).right, 0.0);
  set_right(0);
  EXPECT_EQ(score_prompt(model_, full_, prompt).right, 0.5);
  set_right(1);
  const PromptScore score = score_prompt(model_, full_, prompt);
  EXPECT_EQ(score.right, 1.0);

  double loss = 0;
  const auto logs = log_probabilities(full_, prompt.tokens);
  const auto positions = prompt.answer_positions();
  for (const auto position : positions) {
    const auto t = static_cast<std::size_t>(position);
    loss -= logs[t][static_cast<std::size_t>(prompt.tokens[t + 1])];
  }
  EXPECT_NEAR(score.loss, loss / static_cast<double>(positions.size()), 1e-5);
}

TEST_F(EvaluateTest, EveryTaskIsMeasuredAndShown) {
  std::int64_t last = 0, in_all = 0;
  const auto scores = evaluate(model_, {full_, shared_}, inputs_, [&](auto done, auto total) {
    EXPECT_GT(done, last);
    last = done;
    in_all = total;
  });
  EXPECT_EQ(last, in_all);
  const std::vector<NamedScores> named = {{"baseline", scores[0]}, {"uniform:1/4", scores[1]}};
  const auto json = eval_json(inputs_, named);
  const auto& tasks = json["patterns"][1]["tasks"];
  ASSERT_EQ(tasks.size(), 3u);
  EXPECT_EQ(tasks[0]["task"], "single_needle");
  EXPECT_EQ(tasks[1]["task"], "multi_needle");
  EXPECT_EQ(tasks[1]["keys"], 2);
  EXPECT_EQ(tasks[2]["task"], "variable_tracking");
  EXPECT_EQ(tasks[2]["keys"], 1);
  EXPECT_EQ(tasks[2]["context"], 300);
  EXPECT_EQ(tasks[2]["prompts"], 3);
  EXPECT_EQ(json["patterns"][1]["pattern"], "FSSS");
  EXPECT_EQ(json["patterns"][1]["num_full"], 1);
  const std::string table = eval_table(inputs_, named);
  for (const auto* words : {"uniform:1/4  1 of 4 Full  FSSS", "bits per byte", "0-127", "128-199",
                            "multi_needle, 2 keys", "Retrieval at 300 tokens"}) {
    EXPECT_THAT(table, HasSubstr(words));
  }
}

TEST_F(EvaluateTest, PromptsDependOnTheirOwnTaskAlone) {
  const auto text = tokenizer_.encode(running_text(4, 900));
  const auto one = make_task_sets(text, tokenizer_,
                                  {.contexts = {300}, .num_prompts = 2, .num_keys = 2, .seed = 9});
  const auto more = make_task_sets(
      text, tokenizer_, {.contexts = {256, 300}, .num_prompts = 5, .num_keys = 2, .seed = 9});
  const auto other = make_task_sets(
      text, tokenizer_, {.contexts = {300}, .num_prompts = 2, .num_keys = 2, .seed = 8});
  ASSERT_EQ(more.size(), 6u);
  for (std::size_t set = 0; set < 3; ++set) {
    EXPECT_EQ(one[set].prompts[1].tokens, more[3 + set].prompts[1].tokens);
    EXPECT_NE(one[set].prompts[1].tokens, other[set].prompts[1].tokens);
  }
}

TEST_F(EvaluateTest, TokensOutsideTheModelsVocabularyAreRefused) {
  inputs_.windows[0].tokens[5] = tokenizer_.vocab_size();
  EXPECT_THAT(thrown<InputError>([&] { evaluate(model_, {full_}, inputs_); }),
              HasSubstr("token ids below the model's"));
}

TEST(PositionBucketsTest, ArePowersOfTwoAndCoverTheWindow) {
  const auto ends = [](std::int64_t context) {
    std::vector<std::int64_t> out;
    std::int64_t expected_begin = 0;
    for (const auto& bucket : position_buckets(context)) {
      EXPECT_EQ(bucket.begin, expected_begin);
      expected_begin = bucket.end;
      out.push_back(bucket.end);
    }
    return out;
  };
  EXPECT_EQ(ends(1), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(ends(128), (std::vector<std::int64_t>{128}));
  EXPECT_EQ(ends(129), (std::vector<std::int64_t>{128, 129}));
  EXPECT_EQ(ends(1024), (std::vector<std::int64_t>{128, 256, 512, 1024}));
}

}  // namespace
}  // namespace indexcache
