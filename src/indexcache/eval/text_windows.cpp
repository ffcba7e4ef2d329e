#include "indexcache/eval/text_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"

namespace indexcache {
namespace {

// A character has at most four bytes, a token at least one.
constexpr std::size_t kMaxPartialTokens = 3;

// The number of tokens, `count` or a few less, whose text is exactly the beginning of `rest`, and
// that text's bytes.
struct WholeText {
  std::size_t tokens = 0, bytes = 0;
};
WholeText whole_text(const Tokenizer& tokenizer, std::span<const std::int32_t> tokens,
                     std::string_view rest) {
  for (std::size_t dropped = 0; dropped <= kMaxPartialTokens && dropped < tokens.size();
       ++dropped) {
    const auto window = tokens.first(tokens.size() - dropped);
    const std::string text = tokenizer.decode(window);
    if (rest.starts_with(text)) return {window.size(), text.size()};
  }
  return {};
}

}  // namespace

std::vector<TextWindow> make_text_windows(const std::vector<Document>& documents,
                                          const Tokenizer& tokenizer, std::int64_t context,
                                          WindowChoice choice) {
  // A window shorter than a character's tokens could not end between characters.
  if (context <= static_cast<std::int64_t>(kMaxPartialTokens)) {
    throw expectation_error("context", fmt::format("more than {} tokens", kMaxPartialTokens),
                            std::to_string(context));
  }
  const std::int32_t end_of_text = end_of_text_token(tokenizer);
  std::vector<TextWindow> windows;
  for (const auto& document : documents) {
    std::vector<std::int32_t> tokens = tokenizer.encode(document.text);
    tokens.insert(tokens.begin(), end_of_text);
    const std::span all(tokens);
    std::string_view rest = document.text;
    for (std::size_t begin = 0; begin + 1 < all.size();) {
      const auto length = std::min(static_cast<std::size_t>(context), all.size() - 1 - begin);
      const WholeText scored = whole_text(tokenizer, all.subspan(begin + 1, length), rest);
      if (scored.tokens == 0) {
        throw expectation_error(
            fmt::format("tokenizer: decode(encode(document {}))", quote(document.source)),
            "the text",
            fmt::format("another one from byte {}", document.text.size() - rest.size()));
      }
      TextWindow& window = windows.emplace_back();
      window.tokens.assign(all.begin() + static_cast<std::ptrdiff_t>(begin),
                           all.begin() + static_cast<std::ptrdiff_t>(begin + scored.tokens + 1));
      window.bytes = static_cast<std::int64_t>(scored.bytes);
      const auto slash = document.source.find('/');
      window.domain = document.source.substr(0, slash);
      if (choice == WindowChoice::kFirstOfDocument) break;
      begin += scored.tokens;
      rest.remove_prefix(scored.bytes);
    }
  }
  return windows;
}

std::vector<TextWindow> draw_text_windows(std::vector<TextWindow> windows, std::size_t count,
                                          std::uint64_t seed) {
  if (windows.size() <= count) return windows;
  std::vector<std::size_t> chosen(windows.size());
  std::iota(chosen.begin(), chosen.end(), 0);
  std::mt19937_64 random(seed);
  draw_to_front(chosen, count, random);
  chosen.resize(count);
  std::sort(chosen.begin(), chosen.end());
  std::vector<TextWindow> drawn;
  for (const std::size_t i : chosen) drawn.push_back(std::move(windows[i]));
  return drawn;
}

}  // namespace indexcache
