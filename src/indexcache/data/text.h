// Text for calibration, training and evaluation: documents, their tokens, and sequences cut from
// them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache {

struct Document {
  std::string source;  // where it is from; "" for plain text
  std::string text;
};

// FILE: UTF-8 text (one document), or .jsonl / .jsonl.xz, one object with a string "text" (and
// maybe "source") a line. Throws InputError: empty file, line number and byte offset of bytes that
// are not UTF-8, malformed JSON or xz.
std::vector<Document> read_documents(const std::filesystem::path& file);

// One sequence of token ids with what its loss is taken over.
struct Sequence {
  std::vector<std::int32_t>
      tokens;  // [context + 1]: inputs are tokens[0, context), targets tokens[1, context]
  // Positions t in [0, context) whose prediction of tokens[t + 1] counts; empty = all of them.
  std::vector<std::int32_t> scored;
};

struct SequenceOptions {
  std::int64_t context = 4096;
  int num_sequences = 16;
  std::uint64_t seed = 1;
  double retrieval_share =
      0.0;  // --tasks: this share of the sequences is generated retrieval (data/retrieval.h)
};

// Documents joined by the end-of-text token, then num_sequences windows of context + 1 tokens at
// starts drawn without overlap (seeded). Throws InputError if the text is too short, saying how
// many tokens are needed and how many there are.
std::vector<Sequence> make_sequences(const std::vector<Document>& documents,
                                     const Tokenizer& tokenizer, const SequenceOptions& options);

}  // namespace indexcache
