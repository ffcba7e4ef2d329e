// Windows of documents to measure language modelling on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "indexcache/data/text.h"
#include "indexcache/tokenizer/tokenizer.h"

namespace indexcache {

struct TextWindow {
  // [n + 1], 1 <= n <= context: the token before the window (end-of-text before a document's first)
  // and the window; every token but the first is scored.
  std::vector<std::int32_t> tokens;
  std::int64_t bytes = 0;  // of the scored text
  std::string domain;      // the document's source up to its first '/', "" if it has none
};

enum class WindowChoice { kFirstOfDocument, kAll };

// Cuts each document into windows of `context` tokens that together hold each of its tokens once
// (kAll), or takes its first one. Windows end between characters, so that bytes are whole: at most
// a few tokens early. Throws InputError if decode(encode(text)) is not the text.
std::vector<TextWindow> make_text_windows(const std::vector<Document>& documents,
                                          const Tokenizer& tokenizer, std::int64_t context,
                                          WindowChoice choice);

// `count` of the windows (all if there are not more), drawn by the seed, in their order.
std::vector<TextWindow> draw_text_windows(std::vector<TextWindow> windows, std::size_t count,
                                          std::uint64_t seed);

}  // namespace indexcache
