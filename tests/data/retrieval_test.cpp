#include "indexcache/data/retrieval.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"
#include "support/tiny_tokenizer.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;

std::string running_text(std::uint64_t seed, int num_words) {
  std::mt19937_64 random(seed);
  const auto words = testing::made_up_words(150);
  std::string text;
  for (int i = 0; i < num_words; ++i) {
    text += (i % 13 == 12 ? ".\n" : " ") + words[draw_below(random, words.size())];
    if (i % 17 == 0) text += " " + std::to_string(draw_below(random, 3000));
  }
  return text;
}

int occurrences(const std::string& text, const std::string& piece) {
  int count = 0;
  for (auto at = text.find(piece); at != text.npos; at = text.find(piece, at + 1)) ++count;
  return count;
}

struct Case {
  bool own_words;  // the tokenizer has words and numbers of its own
  RetrievalTask task;
  int num_keys, num_hops, context;
};

class RetrievalTest : public ::testing::TestWithParam<Case> {};

// Reads a prompt's text back as a person would: collects the facts, answers the questions.
TEST_P(RetrievalTest, EveryQuestionHasOneAnswerAndItStandsInTheText) {
  const Case c = GetParam();
  const Tokenizer tokenizer =
      c.own_words ? testing::tiny_tokenizer(200) : testing::tiny_tokenizer(0, false);
  const RetrievalGenerator generator(tokenizer);
  const auto filler = tokenizer.encode(running_text(1, 2000));
  std::mt19937_64 random(11);
  const bool tracking = c.task == RetrievalTask::kVariableTracking;
  for (int repeat = 0; repeat < 30; ++repeat) {
    const RetrievalPrompt prompt = generator.make(
        filler,
        {.task = c.task, .num_keys = c.num_keys, .num_hops = c.num_hops, .context = c.context},
        random);
    ASSERT_EQ(prompt.tokens.size(), static_cast<std::size_t>(c.context) + 1);
    const auto num_questions = c.task == RetrievalTask::kSingleNeedle ? 1 : c.num_keys;
    ASSERT_EQ(prompt.answers.size(), static_cast<std::size_t>(num_questions));
    EXPECT_EQ(prompt.answers.back().back(), c.context - 1);

    const std::string text = tokenizer.decode(prompt.tokens);
    std::map<std::string, std::string> facts;
    const std::regex fact(tracking ? "\nVAR ([a-z]+) = (VAR [a-z]+|[0-9]{3})\\.\n"
                                   : "\nThe number of ([a-z]+) is ([0-9]{3})\\.\n");
    for (std::sregex_iterator it(text.begin(), text.end(), fact), end; it != end; ++it) {
      std::string value = (*it)[2];
      if (value.starts_with("VAR ")) {
        ASSERT_TRUE(facts.contains(value.substr(4))) << "a copy of what is not yet set";
        value = facts[value.substr(4)];
      }
      ASSERT_TRUE(facts.emplace((*it)[1], value).second) << "a key set twice";
    }
    ASSERT_EQ(facts.size(),
              static_cast<std::size_t>(num_questions * (tracking ? c.num_hops + 1 : 1)));

    for (const auto& answer : prompt.answers) {
      std::vector<std::int32_t> before(prompt.tokens.begin(),
                                       prompt.tokens.begin() + answer[0] + 1);
      std::vector<std::int32_t> ids;
      for (std::size_t i = 0; i < answer.size(); ++i) {
        ASSERT_EQ(answer[i], answer[0] + static_cast<std::int32_t>(i));
        ids.push_back(prompt.tokens[static_cast<std::size_t>(answer[i]) + 1]);
      }
      EXPECT_EQ(ids.size(), c.own_words ? 1u : 3u);
      const std::string value = tokenizer.decode(ids), asked = tokenizer.decode(before);
      const std::regex question(tracking ? "\nThe value of VAR ([a-z]+) is $"
                                         : "\nThe number of ([a-z]+) is $");
      std::smatch match;
      const std::string tail = asked.substr(asked.size() - 40);
      ASSERT_TRUE(std::regex_search(tail, match, question)) << tail;
      EXPECT_EQ(facts.at(match[1]), value);
      EXPECT_EQ(occurrences(text, value), 2) << "in the fact and in the answer, nowhere else";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tasks, RetrievalTest,
    ::testing::Values(Case{true, RetrievalTask::kSingleNeedle, 4, 2, 300},
                      Case{true, RetrievalTask::kMultiNeedle, 16, 2, 1024},
                      Case{true, RetrievalTask::kMultiNeedle, 2, 2, 5000},  // filler is repeated
                      Case{true, RetrievalTask::kVariableTracking, 3, 4, 700},
                      Case{false, RetrievalTask::kMultiNeedle, 4, 2, 1000},
                      Case{false, RetrievalTask::kVariableTracking, 2, 1, 1500}));

class GeneratorTest : public ::testing::Test {
 protected:
  const Tokenizer tokenizer_ = testing::tiny_tokenizer(200);
  const RetrievalGenerator generator_{tokenizer_};
};

TEST_F(GeneratorTest, UsesOneTokenWordsAndValuesWhereThereAreEnough) {
  EXPECT_EQ(generator_.num_words(), 200u);
  EXPECT_EQ(generator_.num_values(), 900u);
  const Tokenizer bytes = testing::tiny_tokenizer(0, false);
  const RetrievalGenerator fallback(bytes);
  EXPECT_GE(fallback.num_words(), 64u);
  EXPECT_EQ(fallback.num_values(), 900u);
}

TEST_F(GeneratorTest, TheGeneratorsStateDecides) {
  const auto filler = tokenizer_.encode(running_text(1, 500));
  std::mt19937_64 a(1), b(1), c(2);
  const auto first = generator_.make(filler, {.context = 512}, a);
  EXPECT_EQ(generator_.make(filler, {.context = 512}, b).tokens, first.tokens);
  EXPECT_NE(generator_.make(filler, {.context = 512}, c).tokens, first.tokens);
  EXPECT_NE(generator_.make(filler, {.context = 512}, a).tokens, first.tokens);
}

// Figures of one run, so that another platform or standard library that draws otherwise shows.
TEST_F(GeneratorTest, ASeedMeansTheSamePromptEverywhere) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += " baba babe babi.\n";
  std::mt19937_64 random(1);
  const auto prompt =
      generator_.make(tokenizer_.encode(text), {.num_keys = 3, .context = 400}, random);
  const std::string made = tokenizer_.decode(prompt.tokens);
  EXPECT_EQ(made.find("\nThe number"), 170u);
  EXPECT_THAT(made, ::testing::EndsWith("\nThe number of baru is 609\nThe number of beto is 946"
                                        "\nThe number of babi is 687"));
}

TEST_F(GeneratorTest, TheTextAroundTheLinesIsTheFillerInOrder) {
  const std::string text = running_text(3, 800);
  const auto filler = tokenizer_.encode(text);
  std::mt19937_64 random(1);
  const auto prompt = generator_.make(filler, {.num_keys = 8, .context = 600}, random);
  std::string left = tokenizer_.decode(prompt.tokens);
  left.resize(left.rfind("\nThe number of", left.rfind("\nThe number of") - 100));
  left = std::regex_replace(left, std::regex("\nThe number of [a-z]+ is [0-9]{3}\\.\n"), "");
  EXPECT_EQ(text.substr(0, 500), left.substr(0, 500));
}

TEST_F(GeneratorTest, LinesStandAtAllDepthsAndBetweenWords) {
  const auto filler = tokenizer_.encode(running_text(5, 3000));
  std::mt19937_64 random(1);
  std::vector<int> depths(4, 0);
  for (int i = 0; i < 400; ++i) {
    const auto prompt =
        generator_.make(filler, {.task = RetrievalTask::kSingleNeedle, .context = 1000}, random);
    const std::string text = tokenizer_.decode(prompt.tokens);
    ++depths[4 * text.find("\nThe number of") / text.size()];
  }
  for (const int count : depths) EXPECT_NEAR(count, 100, 45);
}

TEST_F(GeneratorTest, ATextFullOfNumbersStillHidesItsAnswers) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format(" {:03} badu", i);
  const auto filler = tokenizer_.encode(text);
  std::mt19937_64 random(1);
  const auto prompt = generator_.make(filler, {.num_keys = 4, .context = 3500}, random);
  const std::string made = tokenizer_.decode(prompt.tokens);
  for (const auto& answer : prompt.answers) {
    const std::vector<std::int32_t> ids = {prompt.tokens[static_cast<std::size_t>(answer[0]) + 1]};
    EXPECT_EQ(occurrences(made, tokenizer_.decode(ids)), 2);
  }
}

TEST_F(GeneratorTest, WhatCannotBeMadeIsRefused) {
  const auto filler = tokenizer_.encode(running_text(1, 500));
  std::mt19937_64 random(1);
  const auto error_of = [&](const std::vector<std::int32_t>& text, RetrievalOptions options) {
    try {
      generator_.make(text, options, random);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_THAT(error_of(filler, {.num_keys = 4, .context = 50}), HasSubstr("a context of at least"));
  EXPECT_THAT(error_of(filler, {.num_keys = 300, .context = 50000}),
              HasSubstr("at most 200 words"));
  EXPECT_THAT(error_of(filler, {.num_keys = 0}), HasSubstr("at least 1 key"));
  EXPECT_THAT(error_of(filler, {.context = -1}), HasSubstr("1 token of context"));
  EXPECT_THAT(error_of({}, {.context = 500}), HasSubstr("text to hide lines in"));
  EXPECT_THAT(error_of(tokenizer_.encode("123456"), {.context = 500}), "none");
  EXPECT_THAT(error_of({tokenizer_.vocab_size()}, {.context = 500}), HasSubstr("token ids below"));
}

TEST_F(GeneratorTest, TheLeastContextNamedSuffices) {
  const auto filler = tokenizer_.encode(running_text(1, 500));
  std::mt19937_64 random(1);
  try {
    generator_.make(filler, {.context = 10}, random);
    FAIL();
  } catch (const InputError& error) {
    std::smatch match;
    const std::string what = error.what();
    ASSERT_TRUE(std::regex_search(what, match, std::regex("at least ([0-9]+) tokens")));
    const std::int64_t context = std::stol(match[1]);
    EXPECT_THROW(generator_.make(filler, {.context = context - 1}, random), InputError);
    EXPECT_EQ(generator_.make(filler, {.context = context}, random).tokens.size(),
              static_cast<std::size_t>(context) + 1);
  }
}

}  // namespace
}  // namespace indexcache
