// What a tokenizer.json says, checked: nothing in it is left to be found out while encoding.
//
// Read are byte-level BPE models. Refused by name, because text would be encoded otherwise than the
// file means: normalizers, truncation, padding, dropout, byte fallback, subword prefixes and
// suffixes, pre-tokenizers other than Split and ByteLevel, decoders other than ByteLevel,
// post-processors that do more than add special tokens, patterns beyond split_pattern.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/tokenizer/added_tokens.h"
#include "indexcache/tokenizer/byte_pair.h"
#include "indexcache/tokenizer/pre_tokenizer.h"

namespace indexcache {

struct TokenizerFile {
  struct Entry {
    std::string token;  // as written in the file
    std::int32_t id;
  };
  std::vector<Entry> vocabulary;  // the model's, without the added tokens; no id twice
  std::vector<Merge> merges;
  WholePiece whole_piece = WholePiece::kIsMerged;
  std::vector<PreTokenizerStep> steps;
  std::vector<AddedToken> added_tokens;
};

// Throws InputError starting with `where`, which names the file.
TokenizerFile parse_tokenizer_file(std::string_view json, const std::string& where);

}  // namespace indexcache
