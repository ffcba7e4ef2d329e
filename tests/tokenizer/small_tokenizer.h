// A tokenizer.json to change and break: GLM's pre-tokenizer, the 256 bytes, four merges and two
// added tokens.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "indexcache/tokenizer/utf8.h"

namespace indexcache::testing_support {

inline constexpr const char* kGlmPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The byte alphabet's character of each byte is its id's place in the vocabulary: byte b has id b.
inline nlohmann::json byte_vocabulary() {
  nlohmann::json vocabulary = nlohmann::json::object();
  for (char32_t character = 0x21; character < 0x144; ++character) {
    std::string token;
    append_utf8(token, character);
    if (const auto bytes = bytes_of_token(token)) {
      vocabulary[token] = static_cast<unsigned char>(bytes->front());
    }
  }
  return vocabulary;
}

// Ids: bytes 0..255, "ab" 256, "abc" 257, "bc" 258, "\u0120a" (space a) 259, added 260 and 261.
inline nlohmann::json small_tokenizer() {
  nlohmann::json vocabulary = byte_vocabulary();
  vocabulary["ab"] = 256;
  vocabulary["abc"] = 257;
  vocabulary["bc"] = 258;
  vocabulary["\u0120a"] = 259;
  const auto added = [](int id, const char* content) {
    return nlohmann::json{
        {"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
        {"rstrip", false}, {"normalized", false}, {"special", id == 260}};
  };
  const nlohmann::json split = {{"type", "Split"},
                                {"pattern", {{"Regex", kGlmPattern}}},
                                {"behavior", "Isolated"},
                                {"invert", false}};
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", false}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", {added(260, "<|user|>"), added(261, "<think>")}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocabulary},
            {"merges", {"b c", "a b", "ab c", "\u0120 a"}}}}};
}

}  // namespace indexcache::testing_support
