#include "indexcache/engine/session.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "support/random_model.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"
#include "support/tiny_tokenizer.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::thrown;

class SessionTest : public ::testing::Test {
 protected:
  // The next token by one full forward pass over everything so far.
  std::int32_t next_token(const Pattern& pattern, const std::vector<std::int32_t>& tokens) const {
    SequenceCache cache = model_.make_cache(pattern, static_cast<std::int64_t>(tokens.size()));
    const auto ids = at::tensor(std::vector<std::int64_t>(tokens.begin(), tokens.end()));
    const auto logits = model_.logits(model_.forward(ids, cache));
    return static_cast<std::int32_t>(logits[-1].argmax().item<std::int64_t>());
  }

  static constexpr std::int64_t kVocabulary = 600;
  const testing::TemporaryFolder folder_;
  const Model model_ = testing::random_model(folder_.path(), kVocabulary);
  const std::vector<std::int32_t> prompt_ = {5,  99, 301, 12, 7, 450, 33, 5,  99, 250,
                                             18, 77, 121, 9,  5, 99,  64, 31, 8,  200};
};

TEST_F(SessionTest, GreedyGenerationIsTheArgmaxOfRepeatedFullPasses) {
  for (const auto* text : {"FFFF", "FSFS", "FSSS", "-1,-1,0,1"}) {
    const Pattern pattern = Pattern::parse(text, 4);
    std::vector<std::int32_t> expected = prompt_;
    for (int i = 0; i < 12; ++i) expected.push_back(next_token(pattern, expected));
    expected.erase(expected.begin(), expected.begin() + static_cast<long>(prompt_.size()));

    Session session(model_, pattern, 40);
    std::vector<std::int32_t> seen;
    const auto made = generate(session, prompt_, {.max_tokens = 12},
                               [&](std::int32_t token) { seen.push_back(token); });
    EXPECT_EQ(made.tokens, expected) << text;
    EXPECT_EQ(seen, made.tokens);
    EXPECT_EQ(made.reason, StopReason::kMaxTokens);
    EXPECT_EQ(made.prompt_tokens, 20);
    EXPECT_EQ(made.decode_steps, 11);
    EXPECT_EQ(session.length(), 31);  // the last token is not run
  }
}

TEST_F(SessionTest, AStopTokenEndsTheTextAndIsNoPartOfIt) {
  Session first(model_, Pattern::full(4), 64);
  const auto free = generate(first, prompt_, {.max_tokens = 10});
  const auto stop = free.tokens[6];
  const auto before = static_cast<std::size_t>(
      std::find(free.tokens.begin(), free.tokens.end(), stop) - free.tokens.begin());
  Session second(model_, Pattern::full(4), 64);
  const auto stopped = generate(second, prompt_, {.max_tokens = 10, .stop_tokens = {599, stop}});
  EXPECT_EQ(stopped.reason, StopReason::kStopToken);
  EXPECT_EQ(stopped.tokens,
            std::vector<std::int32_t>(free.tokens.begin(),
                                      free.tokens.begin() + static_cast<long>(before)));
}

TEST_F(SessionTest, PiecesOfAPromptGiveWhatTheWholeGives) {
  Session whole(model_, Pattern::parse("FSFS", 4), 20),
      pieces(model_, Pattern::parse("FSFS", 4), 20);
  const auto expected = whole.append(prompt_);
  const std::span all(prompt_);
  pieces.append(all.first(7));
  pieces.append(all.subspan(7, 1));
  const auto logits = pieces.append(all.subspan(8));
  ASSERT_EQ(logits.size(), static_cast<std::size_t>(kVocabulary));
  for (std::size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], expected[i], 1e-4);
}

TEST_F(SessionTest, TheStreamIsTheDecodedText) {
  const Tokenizer tokenizer = testing::tiny_tokenizer(200);
  Session session(model_, Pattern::full(4), 220);
  Tokenizer::Stream stream(tokenizer);
  std::string text;
  const GenerateOptions options{.max_tokens = 200, .sampling = {.temperature = 2.0, .seed = 5}};
  const auto made =
      generate(session, prompt_, options, [&](std::int32_t token) { text += stream.push(token); });
  text += stream.finish();
  EXPECT_EQ(text, tokenizer.decode(made.tokens, /*skip_special_tokens=*/true));
  EXPECT_THAT(text, HasSubstr("\xEF\xBF\xBD"));  // bytes at random are no UTF-8
}

TEST_F(SessionTest, WhatCannotBeRunIsRefused) {
  Session session(model_, Pattern::full(4), 20);
  const auto refused = [&](const std::vector<std::int32_t>& tokens) {
    return thrown<InputError>([&] { session.append(tokens); });
  };
  EXPECT_THAT(refused({}), HasSubstr("at least one token"));
  EXPECT_THAT(refused({3, 600}), HasSubstr("from 0 to 599, found 600"));
  EXPECT_THAT(refused({-1}), HasSubstr("found -1"));
  EXPECT_THAT(refused(std::vector<std::int32_t>(21, 1)), HasSubstr("at most 20 tokens, found 21"));
  EXPECT_EQ(session.length(), 0);
  EXPECT_THAT(thrown<InputError>([&] { generate(session, prompt_, {.max_tokens = 0}); }),
              HasSubstr("max_tokens"));
  EXPECT_THAT(
      thrown<DeviceError>([&] { Session huge(model_, Pattern::full(4), std::int64_t{1} << 50); }),
      HasSubstr("bytes"));
}

}  // namespace
}  // namespace indexcache
