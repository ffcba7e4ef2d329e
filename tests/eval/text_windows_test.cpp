#include "indexcache/eval/text_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "support/thrown.h"
#include "support/tiny_tokenizer.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::thrown;

class TextWindowsTest : public ::testing::Test {
 protected:
  const Tokenizer tokenizer_ = testing::tiny_tokenizer(50);
  const std::int32_t end_of_text_ = *tokenizer_.token_id("<|endoftext|>");
};

TEST_F(TextWindowsTest, AllWindowsTogetherHoldEveryTokenAndByteOnce) {
  // Characters of one to four bytes, each byte a token: windows end inside characters if let.
  std::vector<Document> documents = {
      {"a/1", "na\xC3\xAFve \xE2\x82\xAC 5 \xF0\x9F\x8C\x8D! baba 123"}, {"b", ""}, {"", "babe"}};
  for (int i = 0; i < 6; ++i) documents[1].text += "\xF0\x9F\x8C\x8D\xE2\x82\xAC";
  for (const std::int64_t context : {4, 5, 6, 7, 11, 100}) {
    const auto windows = make_text_windows(documents, tokenizer_, context, WindowChoice::kAll);
    std::size_t w = 0;
    for (const auto& document : documents) {
      const auto expected = tokenizer_.encode(document.text);
      std::vector<std::int32_t> scored;
      std::int64_t bytes = 0;
      std::int32_t before = end_of_text_;
      for (; scored.size() < expected.size(); ++w) {
        ASSERT_LT(w, windows.size());
        const auto& window = windows[w];
        ASSERT_GE(window.tokens.size(), 2u);
        ASSERT_LE(window.tokens.size(), static_cast<std::size_t>(context) + 1);
        EXPECT_EQ(window.tokens[0], before);
        const std::vector<std::int32_t> own(window.tokens.begin() + 1, window.tokens.end());
        EXPECT_EQ(static_cast<std::int64_t>(tokenizer_.decode(own).size()), window.bytes);
        EXPECT_FALSE(find_invalid_utf8(document.text.substr(
            static_cast<std::size_t>(bytes), static_cast<std::size_t>(window.bytes))));
        scored.insert(scored.end(), own.begin(), own.end());
        bytes += window.bytes;
        before = own.back();
      }
      EXPECT_EQ(scored, expected);
      EXPECT_EQ(bytes, static_cast<std::int64_t>(document.text.size()));
    }
    EXPECT_EQ(w, windows.size());
  }
}

TEST_F(TextWindowsTest, FirstWindowsAndDomains) {
  const std::vector<Document> documents = {
      {"prose/a/x", "baba babe babi babo babu"}, {"prose/b", "1"}, {"", "babe"}};
  const auto windows = make_text_windows(documents, tokenizer_, 4, WindowChoice::kFirstOfDocument);
  ASSERT_EQ(windows.size(), 3u);
  EXPECT_EQ(windows[0].domain, "prose");
  EXPECT_EQ(windows[1].domain, "prose");
  EXPECT_EQ(windows[2].domain, "");
  EXPECT_EQ(windows[0].tokens.size(), 5u);
  EXPECT_EQ(windows[1].tokens,
            (std::vector<std::int32_t>{end_of_text_, tokenizer_.encode("1")[0]}));
  EXPECT_EQ(windows[1].bytes, 1);
}

TEST_F(TextWindowsTest, SpecialTokensInTheTextAreText) {
  const auto windows =
      make_text_windows({{"", "baba<|endoftext|>babe"}}, tokenizer_, 64, WindowChoice::kAll);
  ASSERT_EQ(windows.size(), 1u);
  EXPECT_EQ(windows[0].bytes, 21);
}

TEST_F(TextWindowsTest, DrawnWindowsKeepTheirOrderAndTheSeedDecides) {
  std::vector<Document> documents;
  for (int i = 0; i < 30; ++i) documents.push_back({std::to_string(i), "baba"});
  const auto windows = make_text_windows(documents, tokenizer_, 8, WindowChoice::kAll);
  const auto drawn = [&](std::size_t count, std::uint64_t seed) {
    std::vector<int> domains;
    for (const auto& window : draw_text_windows(windows, count, seed)) {
      domains.push_back(std::stoi(window.domain));
    }
    return domains;
  };
  EXPECT_EQ(drawn(30, 1).size(), 30u);
  EXPECT_EQ(drawn(99, 1).size(), 30u);
  const auto five = drawn(5, 1);
  ASSERT_EQ(five.size(), 5u);
  EXPECT_TRUE(std::is_sorted(five.begin(), five.end()));
  EXPECT_EQ(std::adjacent_find(five.begin(), five.end()), five.end());
  EXPECT_EQ(drawn(5, 1), five);
  EXPECT_NE(drawn(5, 2), five);
}

// A tokenizer that does not give its text back: the document is named on one printable line.
TEST_F(TextWindowsTest, ATokenizerThatChangesTheTextIsRefused) {
  auto json = testing::tiny_tokenizer_json(50);
  json["added_tokens"][0]["lstrip"] = true;  // swallows the space before it
  const auto tokenizer = Tokenizer::from_json(json.dump(), "lossy tokenizer");
  const std::string message = thrown<InputError>([&] {
    make_text_windows({{"a\nb/\"c\"", "baba <|endoftext|>"}}, tokenizer, 64, WindowChoice::kAll);
  });
  EXPECT_THAT(message, HasSubstr("document \"a\\x0ab/\\\"c\\\"\""));
}

TEST_F(TextWindowsTest, AContextThatCannotHoldACharacterIsRefused) {
  EXPECT_THAT(thrown<InputError>([&] {
                make_text_windows({{"", "babe"}}, tokenizer_, 3, WindowChoice::kAll);
              }),
              HasSubstr("more than 3 tokens, found 3"));
}

}  // namespace
}  // namespace indexcache
