#include "indexcache/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>

#include "indexcache/base/error.h"
#include "tokenizer/small_tokenizer.h"

namespace indexcache {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::small_tokenizer;
using Ids = std::vector<std::int32_t>;

Tokenizer make(const nlohmann::json& file) { return Tokenizer::from_json(file.dump(), "t.json"); }

TEST(Tokenizer, MergesByRank) {
  const Tokenizer tokenizer = make(small_tokenizer());
  // "b c" comes before "a b": abc is a bc, and "ab c" is never reached.
  EXPECT_THAT(tokenizer.encode("abc ac ab"), ElementsAre('a', 258, 259, 'c', ' ', 256));
  EXPECT_THAT(tokenizer.encode("ab"), ElementsAre(256));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre());
}

TEST(Tokenizer, TakesWholePiecesWhereTheFileSaysSo) {
  nlohmann::json file = small_tokenizer();
  file["model"]["ignore_merges"] = true;
  EXPECT_THAT(make(file).encode("abc"), ElementsAre(257));
  EXPECT_THAT(make(file).encode("abcb"), ElementsAre('a', 258, 'b'));
}

TEST(Tokenizer, TheLaterOfTwoMergesOfOnePairCounts) {
  nlohmann::json file = small_tokenizer();
  file["model"]["merges"].push_back("b c");
  EXPECT_THAT(make(file).encode("abc"), ElementsAre(257));
}

TEST(Tokenizer, FindsTokensByNameAndId) {
  const Tokenizer tokenizer = make(small_tokenizer());
  EXPECT_EQ(tokenizer.vocab_size(), 262);
  EXPECT_EQ(tokenizer.token_id("<|user|>"), 260);
  EXPECT_EQ(tokenizer.token_id("\u0120a"), 259);
  EXPECT_EQ(tokenizer.token_id("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer.token(260), "<|user|>");
  EXPECT_EQ(tokenizer.token(-1), std::nullopt);
  EXPECT_EQ(tokenizer.token(262), std::nullopt);
}

TEST(Tokenizer, InvalidUtf8IsAnErrorWithItsOffset) {
  const Tokenizer tokenizer = make(small_tokenizer());
  const auto error_of = [&](std::string_view text) -> std::string {
    try {
      tokenizer.encode(text);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of("a long enough ascii start \xFF!"),
            "text to encode: expected UTF-8, found byte 0xFF at offset 26");
  EXPECT_THAT(error_of("\xC0\x80"), HasSubstr("0xC0 at offset 0"));
  EXPECT_THAT(error_of("ab\xED\xA0\x80"), HasSubstr("0xED at offset 2"));
  EXPECT_THAT(error_of("\xF4\x90\x80\x80"), HasSubstr("0xF4 at offset 0"));
  EXPECT_THAT(error_of("x\xE2\x82"), HasSubstr("0xE2 at offset 1"));
  EXPECT_EQ(error_of("\xF4\x8F\xBF\xBF \xED\x9F\xBF"), "no error");
}

TEST(Tokenizer, DecodesUnknownIdsToNothing) {
  const Tokenizer tokenizer = make(small_tokenizer());
  EXPECT_EQ(tokenizer.decode(Ids{-5, 'x', 262, 1 << 30, 257}), "xabc");
  EXPECT_EQ(tokenizer.decode(Ids{260, 'x', 261}), "<|user|>x<think>");
  EXPECT_EQ(tokenizer.decode(Ids{260, 'x', 261}, true), "x<think>");
}

TEST(Tokenizer, StreamHoldsBackPartialCharacters) {
  const Tokenizer tokenizer = make(small_tokenizer());
  Tokenizer::Stream stream(tokenizer);
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push(0x82), "");
  EXPECT_EQ(stream.push(0xAC), "\u20AC");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push('a'), "\uFFFDa");
  EXPECT_EQ(stream.push(0xE0), "");
  EXPECT_EQ(stream.push(0x80), "\uFFFD\uFFFD");  // no character starts with E0 80
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.push(260), "");  // special, left out: the character may still go on
  EXPECT_EQ(stream.push(0xA9), "\u00E9");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

// Merging by definition: again and again the leftmost pair of the lowest rank.
Ids merge_by_definition(Ids ids) {
  const std::vector<std::array<int, 3>> merges = {
      {'b', 'c', 258}, {'a', 'b', 256}, {256, 'c', 257}};
  for (;;) {
    std::size_t best_rank = merges.size(), best = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      for (std::size_t rank = 0; rank < best_rank; ++rank) {
        if (ids[i] == merges[rank][0] && ids[i + 1] == merges[rank][1]) best_rank = rank, best = i;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = merges[best_rank][2];
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Tokenizer, MergesAsDefinedInPiecesOfEveryLength) {
  const Tokenizer tokenizer = make(small_tokenizer());
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::string text(1 + random() % 60, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    EXPECT_EQ(tokenizer.encode(text), merge_by_definition(Ids(text.begin(), text.end()))) << text;
  }
}

TEST(Tokenizer, EncodesFromManyThreads) {
  const Tokenizer tokenizer = make(small_tokenizer());
  std::vector<std::string> texts;
  std::mt19937 random(6);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (int j = 0; j < 100; ++j) text += "abc <|user|>\n"[random() % 13];
    texts.push_back(text);
  }
  std::vector<Ids> expected;
  for (const std::string& text : texts) expected.push_back(tokenizer.encode(text));
  std::vector<std::thread> threads;
  std::vector<int> failures(4);
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::size_t i = 0; i < texts.size(); ++i) {
        const std::size_t mine = (i * 7 + thread * 50) % texts.size();
        failures[thread] += tokenizer.encode(texts[mine]) != expected[mine];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(failures, testing::Each(0));
}

// A quadratic merge would take minutes for the first, a quadratic pattern for the others.
TEST(Tokenizer, LongPiecesTakeNoMoreThanTheirShare) {
  const Tokenizer tokenizer = make(small_tokenizer());
  constexpr std::size_t kSize = 1 << 20;
  std::string word;
  while (word.size() < kSize) word += "abc";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(tokenizer.encode(word).size(), 2 * ((kSize + 2) / 3));
  EXPECT_EQ(tokenizer.encode(std::string(kSize, ' ')).size(), kSize);
  EXPECT_EQ(tokenizer.encode(std::string(kSize, '\n')).size(), kSize);
  EXPECT_EQ(tokenizer.encode(std::string(kSize, '<')).size(), kSize);
  EXPECT_EQ(tokenizer.encode(std::string(kSize, '\0')).size(), kSize);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 60);  // 0.5 s on an idle core
}

}  // namespace
}  // namespace indexcache
