// Text for calibration, training and evaluation: documents, their tokens, and sequences cut from
// them. Everything drawn here is the same for the same seed on every platform.
#pragma once

#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache {

struct Document {
  std::string source;  // where it is from; "" for plain text
  std::string text;    // not empty, UTF-8
};

// FILE: UTF-8 text (one document), or .jsonl / .jsonl.xz, one object with a string "text" (and
// maybe "source") a line; blank lines and empty texts are passed over. Throws InputError: no text
// at all, line number and byte offset of bytes that are not UTF-8, malformed JSON or xz.
std::vector<Document> read_documents(const std::filesystem::path& file);

// The token that separates documents: <|endoftext|> (GLM), <｜end▁of▁sentence｜> (DeepSeek) or
// </s>. Throws InputError if the tokenizer has none of them.
std::int32_t end_of_text_token(const Tokenizer& tokenizer);

// Documents as one run of tokens, each followed by the end-of-text token. Documents are encoded on
// `num_threads` threads (0: one a core); the result does not depend on it.
struct TokenStream {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> document_starts;  // [documents]
};
TokenStream tokenize(const std::vector<Document>& documents, const Tokenizer& tokenizer,
                     int num_threads = 0);

// A window of `length` tokens, all starts equally likely. Throws InputError if there are fewer.
std::span<const std::int32_t> draw_window(std::span<const std::int32_t> tokens, std::int64_t length,
                                          std::mt19937_64& random);

// One sequence of token ids with what its loss is taken over.
struct Sequence {
  // [context + 1]: inputs are tokens[0, context), targets tokens[1, context].
  std::vector<std::int32_t> tokens;
  // Positions t in [0, context), ascending, whose prediction of tokens[t + 1] counts; empty = all
  // of them. A sequence of running text counts all; one of generated retrieval its answer tokens.
  std::vector<std::int32_t> scored;
};

struct SequenceOptions {
  std::int64_t context = 4096;
  int num_sequences = 16;
  std::uint64_t seed = 1;
  // --tasks: this share of the sequences, spread evenly among them, is generated retrieval
  // (data/retrieval.h): multi-key needles, one key for 128 tokens of context and at most 16.
  double retrieval_share = 0.0;
};

// Documents joined by the end-of-text token, then num_sequences windows of context + 1 tokens at
// starts drawn without overlap, in the order of the text. A retrieval sequence hides its lines in
// its own window, so the other sequences are the same at any share. Throws InputError if the text
// is too short, saying how many tokens are needed and how many there are.
std::vector<Sequence> make_sequences(const std::vector<Document>& documents,
                                     const Tokenizer& tokenizer, const SequenceOptions& options);

}  // namespace indexcache
