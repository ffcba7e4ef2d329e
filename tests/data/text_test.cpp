#include "indexcache/data/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"
#include "support/tiny_tokenizer.h"

namespace indexcache {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Documents whose tokens are all different bytes or words, so that a window shows where it is from.
std::vector<Document> some_documents(int count) {
  const auto words = testing::made_up_words(150);
  std::mt19937_64 random(7);
  std::vector<Document> documents;
  for (int i = 0; i < count; ++i) {
    std::string text;
    const auto length = 20 + draw_below(random, 200);
    for (std::uint64_t w = 0; w < length; ++w) {
      text += (w % 11 == 10 ? ".\n" : " ") + words[draw_below(random, words.size())];
    }
    documents.push_back({.source = std::to_string(i), .text = text});
  }
  return documents;
}

TEST(RandomTest, DrawBelowIsTheStandardGeneratorModuloTheBound) {
  std::mt19937_64 drawn(42), plain(42);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(draw_below(drawn, 1), 0u);
    plain();
    EXPECT_EQ(draw_below(drawn, 10), plain() % 10);
  }
  // The 10000th output of the default seed, as the C++ standard states it.
  std::mt19937_64 standard;
  standard.discard(9999);
  EXPECT_EQ(draw_below(standard, std::uint64_t{1} << 63), 9981545732273789042u % (1ull << 63));
}

TEST(RandomTest, DrawBelowRejectsWhatWouldFavourLowResults) {
  const std::uint64_t bound = (std::uint64_t{1} << 63) + 1;  // half of all outputs are rejected
  std::mt19937_64 drawn(3), plain(3);
  for (int i = 0; i < 100; ++i) {
    std::uint64_t value = plain();
    while (value < bound - 2) value = plain();
    EXPECT_EQ(draw_below(drawn, bound), value % bound);
  }
}

TEST(RandomTest, ShuffleIsAPermutationAndReachesAll) {
  std::mt19937_64 random(5);
  std::vector<int> counts(6, 0);
  for (int i = 0; i < 6000; ++i) {
    std::vector<int> values = {0, 1, 2};
    shuffle(values, random);
    std::vector<int> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    ASSERT_EQ(sorted, (std::vector<int>{0, 1, 2}));
    ++counts[static_cast<std::size_t>(values[0] * 2 + (values[1] > values[2]))];
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);  // 5 standard deviations
  const double unit = draw_unit(random);
  EXPECT_GE(unit, 0);
  EXPECT_LT(unit, 1);
}

TEST(TokenizeTest, DocumentsEndInEndOfTextAndThreadsDoNotMatter) {
  const Tokenizer tokenizer = testing::tiny_tokenizer(150);
  const auto documents = some_documents(20);
  const TokenStream one = tokenize(documents, tokenizer, 1);
  const TokenStream many = tokenize(documents, tokenizer, 5);
  EXPECT_EQ(one.tokens, many.tokens);
  EXPECT_EQ(one.document_starts, many.document_starts);
  std::vector<std::int32_t> expected;
  for (const auto& document : documents) {
    EXPECT_EQ(one.document_starts[std::stoul(document.source)],
              static_cast<std::int64_t>(expected.size()));
    const auto tokens = tokenizer.encode(document.text);
    expected.insert(expected.end(), tokens.begin(), tokens.end());
    expected.push_back(*tokenizer.token_id("<|endoftext|>"));
  }
  EXPECT_EQ(one.tokens, expected);
}

TEST(TokenizeTest, AnErrorOnAThreadIsThrown) {
  const Tokenizer tokenizer = testing::tiny_tokenizer(0);
  auto documents = some_documents(20);
  documents[13].text = "\xFF";
  EXPECT_THROW(tokenize(documents, tokenizer, 3), InputError);
}

TEST(TokenizeTest, ATokenizerWithoutEndOfTextIsRefused) {
  auto json = testing::tiny_tokenizer_json(0);
  json["added_tokens"] = nlohmann::json::array();
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump(), "test");
  EXPECT_THROW(tokenize(some_documents(1), tokenizer), InputError);
}

TEST(DrawWindowTest, ReachesBothEndsAndStaysInside) {
  std::vector<std::int32_t> tokens(12);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::mt19937_64 random(1);
  std::vector<int> seen(12, 0);
  for (int i = 0; i < 300; ++i) {
    const auto window = draw_window(tokens, 9, random);
    ASSERT_EQ(window.size(), 9u);
    ++seen[static_cast<std::size_t>(window[0])];
  }
  for (std::size_t i = 0; i < 4; ++i) EXPECT_GT(seen[i], 30);
  for (std::size_t i = 4; i < 12; ++i) EXPECT_EQ(seen[i], 0);
  EXPECT_THROW(draw_window(tokens, 13, random), InputError);
  EXPECT_EQ(draw_window(tokens, 12, random).size(), 12u);
}

class MakeSequencesTest : public ::testing::Test {
 protected:
  const Tokenizer tokenizer_ = testing::tiny_tokenizer(150);
  const std::vector<Document> documents_ = some_documents(60);
};

TEST_F(MakeSequencesTest, WindowsAreDisjointPiecesOfTheText) {
  const auto stream = tokenize(documents_, tokenizer_).tokens;
  SequenceOptions options{.context = 100, .num_sequences = 12, .seed = 3};
  const auto sequences = make_sequences(documents_, tokenizer_, options);
  ASSERT_EQ(sequences.size(), 12u);
  auto from = stream.begin();
  for (const auto& sequence : sequences) {
    ASSERT_EQ(sequence.tokens.size(), 101u);
    EXPECT_TRUE(sequence.scored.empty());
    from = std::search(from, stream.end(), sequence.tokens.begin(), sequence.tokens.end());
    ASSERT_NE(from, stream.end());
    from += 101;
  }
}

TEST_F(MakeSequencesTest, SeedDecides) {
  SequenceOptions options{.context = 200, .num_sequences = 12, .seed = 3, .retrieval_share = 0.5};
  const auto first = make_sequences(documents_, tokenizer_, options);
  const auto again = make_sequences(documents_, tokenizer_, options);
  options.seed = 4;
  const auto other = make_sequences(documents_, tokenizer_, options);
  int differing = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].tokens, again[i].tokens);
    EXPECT_EQ(first[i].scored, again[i].scored);
    differing += first[i].tokens != other[i].tokens;
  }
  EXPECT_GT(differing, 10);
}

// How many runs of neighbouring positions: answers.
int runs(const std::vector<std::int32_t>& positions) {
  int count = 0;
  for (std::size_t i = 0; i < positions.size(); ++i) {
    count += i == 0 || positions[i] != positions[i - 1] + 1;
  }
  return count;
}

TEST_F(MakeSequencesTest, TheShareOfRetrievalIsExactAndLeavesTheOtherSequencesAlone) {
  SequenceOptions options{.context = 400, .num_sequences = 10, .seed = 3};
  const auto text = make_sequences(documents_, tokenizer_, options);
  for (const double share : {0.1, 0.3, 0.5, 1.0}) {
    options.retrieval_share = share;
    const auto mixed = make_sequences(documents_, tokenizer_, options);
    int retrieval = 0;
    for (std::size_t i = 0; i < mixed.size(); ++i) {
      ASSERT_EQ(mixed[i].tokens.size(), 401u);
      if (mixed[i].scored.empty()) {
        EXPECT_EQ(mixed[i].tokens, text[i].tokens);
      } else {
        ++retrieval;
        EXPECT_TRUE(std::is_sorted(mixed[i].scored.begin(), mixed[i].scored.end()));
        EXPECT_EQ(mixed[i].scored.back(), 399);
        EXPECT_EQ(runs(mixed[i].scored), 3);  // needles for 400 tokens
      }
    }
    EXPECT_EQ(retrieval, static_cast<int>(share * 10 + 0.5));
  }
}

TEST_F(MakeSequencesTest, AsManyWindowsAsFitAndNotOneMore) {
  const auto available = tokenize(documents_, tokenizer_).tokens.size();
  SequenceOptions options{.context = 99};
  options.num_sequences = static_cast<int>(available / 100);
  EXPECT_EQ(make_sequences(documents_, tokenizer_, options).size(), available / 100);
  options.num_sequences += 1;
  try {
    make_sequences(documents_, tokenizer_, options);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(std::to_string((available / 100 + 1) * 100)),
                                    HasSubstr(std::to_string(available) + " tokens")));
  }
}

TEST_F(MakeSequencesTest, SenselessOptionsAreRefused) {
  const auto refused = [&](SequenceOptions options) {
    EXPECT_THROW(make_sequences(documents_, tokenizer_, options), InputError);
  };
  refused({.context = 0});
  refused({.context = -5});
  refused({.context = 10, .num_sequences = 0});
  refused({.context = 10, .num_sequences = 1, .retrieval_share = 1.5});
  refused({.context = 10, .num_sequences = 1, .retrieval_share = -0.1});
  refused({.context = std::numeric_limits<std::int64_t>::max(), .num_sequences = 1});
  refused({.context = 10, .num_sequences = 2, .retrieval_share = 0.5});  // lines do not fit
}

}  // namespace
}  // namespace indexcache
