// A tokenizer for tests, small enough to reason about: the 256 bytes, numbers of two and three
// digits, and made-up words with a space before them ("baba", "babe", ...); GLM's pre-tokenizer;
// <|endoftext|> last.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache::testing {

inline std::string utf8(int code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | (code_point >> 6)),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

// The printable stand-ins of bytes in byte-level vocabularies.
inline std::vector<std::string> byte_alphabet() {
  std::vector<std::string> alphabet(256);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                           (byte >= 0xAE && byte <= 0xFF);
    alphabet[static_cast<std::size_t>(byte)] = utf8(printable ? byte : next++);
  }
  return alphabet;
}

// Four-letter words, `count` <= 1080 of them.
inline std::vector<std::string> made_up_words(int count) {
  const std::string consonants = "bdfgklmnprstvz", vowels = "aeiou";
  std::vector<std::string> words;
  for (const char a : consonants) {
    for (const char b : vowels) {
      for (const char c : consonants) {
        for (const char d : vowels) {
          if (static_cast<int>(words.size()) == count) return words;
          words.push_back({a, b, c, d});
        }
      }
    }
  }
  return words;
}

inline nlohmann::json tiny_tokenizer_json(int num_words, bool with_numbers = true) {
  nlohmann::json vocab = nlohmann::json::object(), merges = nlohmann::json::array();
  int next = 0;
  const auto add = [&](const std::string& token) {
    if (!vocab.contains(token)) vocab[token] = next++;
  };
  const auto merge = [&](const std::string& left, const std::string& right) {
    if (vocab.contains(left + right)) return;
    merges.push_back({left, right});
    add(left + right);
  };
  const auto alphabet = byte_alphabet();
  for (const auto& token : alphabet) add(token);
  for (const auto& word : made_up_words(num_words)) {
    std::string left = alphabet[' '];
    for (const char letter : word) {
      merge(left, std::string(1, letter));
      left += letter;
    }
  }
  if (with_numbers) {
    for (int i = 0; i < 100; ++i) merge(std::string(1, '0' + i / 10), std::string(1, '0' + i % 10));
    for (int i = 0; i < 1000; ++i) {
      const std::string digits = std::to_string(1000 + i).substr(1);
      merges.push_back({digits.substr(0, 1), digits.substr(1)});  // whichever pair merged first
      merge(digits.substr(0, 2), digits.substr(2));
    }
  }
  const char* regex =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
      "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {{{"id", next},
             {"content", "<|endoftext|>"},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false},
             {"normalized", false},
             {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"},
               {"pattern", {{"Regex", regex}}},
               {"behavior", "Isolated"},
               {"invert", false}},
              {{"type", "ByteLevel"},
               {"add_prefix_space", false},
               {"trim_offsets", true},
               {"use_regex", false}}}}}},
          {"post_processor",
           {{"type", "ByteLevel"},
            {"add_prefix_space", true},
            {"trim_offsets", false},
            {"use_regex", true}}},
          {"decoder",
           {{"type", "ByteLevel"},
            {"add_prefix_space", true},
            {"trim_offsets", true},
            {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

inline Tokenizer tiny_tokenizer(int num_words, bool with_numbers = true) {
  return Tokenizer::from_json(tiny_tokenizer_json(num_words, with_numbers).dump(),
                              "tiny tokenizer");
}

}  // namespace indexcache::testing
