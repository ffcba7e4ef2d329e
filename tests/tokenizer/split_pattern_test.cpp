#include "indexcache/tokenizer/split_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "indexcache/base/error.h"
#include "indexcache/tokenizer/pre_tokenizer.h"
#include "tokenizer/small_tokenizer.h"

namespace indexcache {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Pieces final : PreTokenizer::Sink {
  void take(std::string_view piece) override { pieces.emplace_back(piece); }
  std::vector<std::string> pieces;
};

std::vector<std::string> run(const std::vector<PreTokenizerStep>& steps, std::string_view text) {
  const PreTokenizer pre_tokenizer(steps, "t");
  PreTokenizer::Scratch scratch;
  Pieces pieces;
  pre_tokenizer.split(text, scratch, pieces);
  return pieces.pieces;
}

std::vector<std::string> split(std::string_view pattern, std::string_view text,
                               SplitKeeps keeps = SplitKeeps::kMatchesAndGaps) {
  return run({SplitStep{translate_split_pattern(pattern, "t"), keeps}}, text);
}

std::string pattern_error(std::string_view pattern) {
  try {
    split(pattern, "x");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(SplitPattern, CutsAsGlmDoes) {
  EXPECT_THAT(split(testing_support::kGlmPattern, "I'M 12345  x!\n\n y  "),
              ElementsAre("I", "'M", " ", "123", "45", " ", " x", "!\n\n", " y", "  "));
}

TEST(SplitPattern, KnowsCodePointsThatPcre2DoesNot) {
  // U+1C89 is a letter since Unicode 16, U+11BF0 a digit; U+180E is no white space since 6.3.
  EXPECT_THAT(split(R"(\p{L}+)", "a\u1C89\u1C8Ab1"), ElementsAre("a\u1C89\u1C8Ab", "1"));
  EXPECT_THAT(split(R"([^\p{L}]+)", "a\u1C89!"), ElementsAre("a\u1C89", "!"));
  EXPECT_THAT(split(R"(\p{N})", "\U00011BF0x"), ElementsAre("\U00011BF0", "x"));
  EXPECT_THAT(split(R"(\s+)", "a\u180E\u2003b"), ElementsAre("a\u180E", "\u2003", "b"));
  EXPECT_THAT(split(R"(\S+)", "a\u180E\u2003b"), ElementsAre("a\u180E", "\u2003", "b"));
  EXPECT_THAT(split(R"([\S]+)", "a\u180E\u2003b"), ElementsAre("a\u180E", "\u2003", "b"));
  EXPECT_THAT(split(R"([^\S]+)", "a\u180E\u2003b"), ElementsAre("a\u180E", "\u2003", "b"));
}

TEST(SplitPattern, KeepsWhatItIsTold) {
  EXPECT_THAT(split("b", "abcb", SplitKeeps::kMatches), ElementsAre("b", "b"));
  EXPECT_THAT(split("b", "abcb", SplitKeeps::kGaps), ElementsAre("a", "c"));
  EXPECT_THAT(split("x", "abc", SplitKeeps::kMatches), ElementsAre());
  EXPECT_THAT(split("x", "", SplitKeeps::kMatchesAndGaps), ElementsAre());
}

TEST(SplitPattern, EachPieceIsATextOfItsOwn) {
  // The second pattern's lookahead sees the end of the piece, not the digit that follows.
  const std::vector<PreTokenizerStep> steps = {
      SplitStep{translate_split_pattern("[0-9]", "t"), {}},
      SplitStep{translate_split_pattern(R"(\s(?!\S))", "t"), {}}};
  EXPECT_THAT(run(steps, "a 1"), ElementsAre("a", " ", "1"));
}

TEST(SplitPattern, PrefixesEachPieceWithASpace) {
  const std::vector<PreTokenizerStep> steps = {SplitStep{literal_split_pattern("$."), {}},
                                               PrefixSpaceStep{}};
  EXPECT_THAT(run(steps, "a$. b"), ElementsAre(" a", " $.", " b"));
}

TEST(SplitPattern, RefusesByNameWhatTheLibrariesReadDifferently) {
  EXPECT_THAT(pattern_error("a."), HasSubstr("found a bare ."));
  EXPECT_THAT(pattern_error("^a"), HasSubstr("found a bare ^"));
  EXPECT_THAT(pattern_error("a$"), HasSubstr("found a bare $"));
  EXPECT_THAT(pattern_error(R"(\d)"), HasSubstr(R"(found \ before "d")"));
  EXPECT_THAT(pattern_error(R"(\w)"), HasSubstr(R"(found \ before "w")"));
  EXPECT_THAT(pattern_error(R"(\b)"), HasSubstr(R"(found \ before "b")"));
  EXPECT_THAT(pattern_error(R"((a)\1)"), HasSubstr(R"(found \ before "1")"));
  EXPECT_THAT(pattern_error(R"(\p{Lu})"), HasSubstr(R"(found \p with "Lu")"));
  EXPECT_THAT(pattern_error(R"(\p{Han}+)"), HasSubstr(R"(found \p with "Han")"));
  EXPECT_THAT(pattern_error(R"(\p{L)"), HasSubstr(R"(found \p with "L")"));
  EXPECT_THAT(pattern_error("(?<=a)b"), HasSubstr("the group \"(?<\""));
  EXPECT_THAT(pattern_error("(?>a)"), HasSubstr("the group \"(?>\""));
  EXPECT_THAT(pattern_error("(*ACCEPT)"), HasSubstr("the group \"(*A\""));
  EXPECT_THAT(pattern_error("(?i)a"), HasSubstr("the group \"(?i\""));
  EXPECT_THAT(pattern_error("(?i:ss)"), HasSubstr("one ligature"));
  EXPECT_THAT(pattern_error("(?i:\u00E9)"), HasSubstr("beyond ASCII"));
  EXPECT_THAT(pattern_error("(?i:[^s])"), HasSubstr("a negated class in (?i:"));
  EXPECT_THAT(pattern_error(R"((?i:a\p{L}))"),
              HasSubstr("a class other than of ASCII characters in (?i:"));
  EXPECT_THAT(pattern_error(R"((?i:[a\S]))"),
              HasSubstr("a class other than of ASCII characters in (?i:"));
  EXPECT_THAT(pattern_error("[[:alpha:]]"), HasSubstr("a [ inside a class"));
  EXPECT_THAT(pattern_error("[a-z&&b]"), HasSubstr("&& inside a class"));
  EXPECT_THAT(pattern_error("[]"), HasSubstr("an empty []"));
  EXPECT_THAT(pattern_error("[a"), HasSubstr("a class without its ]"));
  EXPECT_THAT(pattern_error("[z-a]"), HasSubstr("runs backwards"));
  EXPECT_THAT(pattern_error(R"([a-\s])"), HasSubstr("ends in no character"));
  EXPECT_THAT(pattern_error("(a"), HasSubstr("a group without its )"));
  EXPECT_THAT(pattern_error("a)"), HasSubstr("a ) without its group"));
  EXPECT_THAT(pattern_error("a\\"), HasSubstr("a \\ at the end"));
  EXPECT_THAT(pattern_error("*a"), HasSubstr("nothing that can repeat"));
  EXPECT_THAT(pattern_error("a**"), HasSubstr("nothing that can repeat"));
  EXPECT_THAT(pattern_error("(?!a)+"), HasSubstr("nothing that can repeat"));
  EXPECT_THAT(pattern_error("a{,3}"), HasSubstr("where a count should be"));
  EXPECT_THAT(pattern_error("a{1,2,3}"), HasSubstr("where a count should be"));
  EXPECT_THAT(pattern_error("a{2}?"), HasSubstr("lazy or possessive"));
  EXPECT_THAT(pattern_error("a{3,2}"), HasSubstr("PCRE2 refuses"));
  EXPECT_THAT(pattern_error("a|"), HasSubstr("can match the empty string"));
  EXPECT_THAT(pattern_error(""), HasSubstr("can match the empty string"));
  EXPECT_THAT(pattern_error(std::string(1000, '(') + "a" + std::string(1000, ')')),
              HasSubstr("PCRE2 refuses"));
}

TEST(SplitPattern, GivesUpOnPatternsThatNeverEnd) {
  EXPECT_THROW(split("(?:a+)+[bc]", std::string(200, 'a')), InputError);
}

}  // namespace
}  // namespace indexcache
