// Malformed, hostile and unsupported tokenizer.json files: one InputError that names the place.
#include "indexcache/tokenizer/tokenizer_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "indexcache/base/error.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "tokenizer/small_tokenizer.h"

namespace indexcache {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing_support::small_tokenizer;

std::string file_error(const std::string& text) {
  try {
    Tokenizer::from_json(text, "t.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

// The error after `value` has been put at `pointer` (a JSON pointer) of the good file.
std::string error_with(const char* pointer, const json& value) {
  json file = small_tokenizer();
  file[json::json_pointer(pointer)] = value;
  return file_error(file.dump());
}

std::string error_without(const char* parent, const char* key) {
  json file = small_tokenizer();
  file[json::json_pointer(parent)].erase(key);
  return file_error(file.dump());
}

TEST(TokenizerFile, TheGoodFileIsGood) {
  EXPECT_EQ(file_error(small_tokenizer().dump()), "no error");
}

TEST(TokenizerFile, NamesWhatIsNotJson) {
  EXPECT_EQ(file_error(""), "t.json: expected JSON, found a syntax error at byte 1");
  EXPECT_EQ(file_error("{\"a\": "), "t.json: expected JSON, found a syntax error at byte 7");
  EXPECT_THAT(file_error("{\"a\": \"\xFF\"}"), HasSubstr("expected JSON"));
  EXPECT_THAT(file_error("{\"a\": \"\\ud800\"}"), HasSubstr("expected JSON"));
  EXPECT_THAT(file_error("{\"a\": 1e999}"), HasSubstr("expected JSON"));
  EXPECT_EQ(file_error("[]"), "t.json: expected an object, found an array");
  EXPECT_THAT(file_error("{}"), HasSubstr("t.json: "));
  EXPECT_THAT(file_error(std::string(100000, '[')), HasSubstr("expected JSON"));
  EXPECT_THAT(file_error(std::string(100000, '[') + std::string(100000, ']')),
              HasSubstr("expected an object"));
}

TEST(TokenizerFile, EveryCutIsAnError) {
  const std::string text = small_tokenizer().dump();
  for (std::size_t size = 0; size < text.size(); size += 37) {
    EXPECT_THAT(file_error(text.substr(0, size)), HasSubstr("expected JSON")) << size;
  }
}

TEST(TokenizerFile, RefusesByNameWhatItDoesNotDo) {
  EXPECT_THAT(error_with("/version", "2.0"),
              HasSubstr("t.json: version: expected \"1.0\", found \"2.0\""));
  EXPECT_THAT(
      error_with("/normalizer", {{"type", "NFC"}}),
      HasSubstr("t.json: normalizer.type: expected no normalizer (text is encoded as it is), "
                "found \"NFC\""));
  EXPECT_THAT(
      error_with("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}}),
      HasSubstr("t.json: normalizer.type: "));
  EXPECT_EQ(error_with("/normalizer", {{"type", "Sequence"}, {"normalizers", json::array()}}),
            "no error");
  EXPECT_THAT(error_with("/truncation", {{"max_length", 5}}), HasSubstr("t.json: truncation: "));
  EXPECT_THAT(error_with("/padding", {{"length", 5}}), HasSubstr("t.json: padding: "));
  EXPECT_THAT(error_with("/decoder", nullptr), HasSubstr("decoder: expected a ByteLevel decoder"));
  EXPECT_THAT(error_with("/decoder/type", "WordPiece"), HasSubstr("decoder: expected"));
  EXPECT_EQ(error_with("/model/type", "Unigram"),
            "t.json: model.type: expected \"BPE\", found \"Unigram\"");
  EXPECT_THAT(error_with("/model/dropout", 0.1), HasSubstr("model.dropout: expected null"));
  EXPECT_THAT(error_with("/model/byte_fallback", true), HasSubstr("model.byte_fallback: expected"));
  EXPECT_THAT(error_with("/model/end_of_word_suffix", "</w>"),
              HasSubstr("model.end_of_word_suffix: expected"));
  EXPECT_THAT(error_with("/model/continuing_subword_prefix", "##"),
              HasSubstr("model.continuing_subword_prefix: expected"));
}

TEST(TokenizerFile, RefusesOtherPreTokenizers) {
  const json byte_level = small_tokenizer()["pre_tokenizer"]["pretokenizers"][1];
  EXPECT_THAT(error_with("/pre_tokenizer", nullptr), HasSubstr("pre_tokenizer: expected"));
  EXPECT_THAT(error_with("/pre_tokenizer", {{"type", "Whitespace"}}),
              HasSubstr("pre_tokenizer.type: expected \"Split\" or \"ByteLevel\", found "
                        "\"Whitespace\""));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers/0", {{"type", "Digits"}}),
              HasSubstr("pre_tokenizer.pretokenizers[0].type"));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers/0", byte_level),
              HasSubstr("ByteLevel as the last"));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers/2", byte_level),
              HasSubstr("ByteLevel as the last"));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers", json::array()),
              HasSubstr("a sequence that ends in ByteLevel"));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers/0/behavior", "MergedWithNext"),
              HasSubstr("behavior: expected \"Isolated\" or \"Removed\""));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers/0/pattern/Regex", "a*"),
              HasSubstr("can match the empty string"));
  EXPECT_THAT(error_with("/pre_tokenizer/pretokenizers/0/pattern", json::object()),
              HasSubstr("pattern: expected an object with \"Regex\" or \"String\""));
  EXPECT_THAT(
      error_with("/pre_tokenizer/pretokenizers", json(1000, small_tokenizer()["pre_tokenizer"])),
      HasSubstr("at most 64 pre-tokenizers, found 1000"));
}

TEST(TokenizerFile, RefusesPostProcessorsThatChangeTheText) {
  EXPECT_THAT(error_with("/post_processor", {{"type", "BertProcessing"}}),
              HasSubstr("post_processor.type: expected"));
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  EXPECT_THAT(error_with("/post_processor",
                         {{"type", "TemplateProcessing"}, {"single", {sequence, sequence}}}),
              HasSubstr("post_processor.single: expected the text once"));
  EXPECT_EQ(error_with("/post_processor", {{"type", "TemplateProcessing"}, {"single", {sequence}}}),
            "no error");
}

TEST(TokenizerFile, ChecksTheVocabulary) {
  EXPECT_EQ(error_with("/model/vocab/ab", 33),
            "t.json: model.vocab[\"ab\"]: expected an id of its own, found 33");
  EXPECT_THAT(error_with("/model/vocab/ab", -1), HasSubstr("expected an id in 0..1048575"));
  EXPECT_THAT(error_with("/model/vocab/ab", 4294967295u), HasSubstr("expected an id in"));
  EXPECT_THAT(error_with("/model/vocab/ab", 18446744073709551615u), HasSubstr("expected an id in"));
  EXPECT_THAT(error_with("/model/vocab/ab", 256.5), HasSubstr("expected an id in"));
  EXPECT_THAT(error_with("/model/vocab/ab", "256"), HasSubstr("expected an id in"));
  EXPECT_THAT(error_with("/model/vocab", json::array()), HasSubstr("model.vocab: expected an obj"));
  EXPECT_THAT(error_without("/model", "vocab"), HasSubstr("model.vocab: expected an object"));
  EXPECT_EQ(error_without("/model/vocab", "q"),
            "t.json: model.vocab: expected a token for every byte of UTF-8, found none for 0x71");
}

TEST(TokenizerFile, ChecksTheMerges) {
  EXPECT_THAT(error_without("/model", "merges"), HasSubstr("model.merges: expected an array"));
  EXPECT_THAT(error_with("/model/merges/0", "a"),
              HasSubstr("model.merges[0]: expected two tokens"));
  EXPECT_THAT(error_with("/model/merges/0", "a b c"), HasSubstr("model.merges[0]: expected two"));
  EXPECT_THAT(error_with("/model/merges/0", {"a"}), HasSubstr("model.merges[0]: expected two"));
  EXPECT_THAT(error_with("/model/merges/0", 7), HasSubstr("model.merges[0]: expected"));
  EXPECT_EQ(error_with("/model/merges/1", "a xyz"),
            "t.json: model.merges[1]: expected tokens of the vocabulary, found \"xyz\"");
  EXPECT_EQ(error_with("/model/merges/1", {"a", "c"}),
            "t.json: model.merges[1]: expected tokens of the vocabulary, found \"ac\"");
}

TEST(TokenizerFile, ChecksTheAddedTokens) {
  EXPECT_EQ(error_with("/added_tokens/0/id", 300),
            "t.json: added_tokens[0].id: expected 260 (the order of the added tokens gives it), "
            "found 300");
  EXPECT_THAT(error_with("/added_tokens/1/content", "<|user|>"),
              HasSubstr("added_tokens[1].content: expected a token that is added once"));
  EXPECT_THAT(error_with("/added_tokens/0/content", ""), HasSubstr("added_tokens[0].content"));
  EXPECT_THAT(error_with("/added_tokens/0/lstrip", "no"), HasSubstr("added_tokens[0].lstrip"));
  EXPECT_THAT(error_without("/added_tokens/0", "special"), HasSubstr("added_tokens[0].special"));
  // A vocabulary with a hole: the number of tokens is an id already taken.
  EXPECT_THAT(error_with("/model/vocab/\u0120a", 260), HasSubstr("added_tokens"));
}

TEST(TokenizerFile, QuotesHostileTextOnOneLine) {
  const std::string error = error_with("/model/type", std::string(5000, '\n'));
  EXPECT_EQ(error.find('\n'), error.npos);
  EXPECT_LT(error.size(), 600u);
}

}  // namespace
}  // namespace indexcache
