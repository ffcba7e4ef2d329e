#include "indexcache/tokenizer/split_pattern.h"

#include <array>
#include <cctype>
#include <cstdint>
#include <span>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/tokenizer/unicode_ranges.h"
#include "indexcache/tokenizer/utf8.h"

namespace indexcache {
namespace {

constexpr char32_t kLastCodePoint = 0x10FFFF;

std::string hex(char32_t code_point) {
  return fmt::format("\\x{{{:x}}}", static_cast<std::uint32_t>(code_point));
}

std::string class_items(std::span<const CodeRange> ranges) {
  std::string items;
  for (const CodeRange range : ranges) {
    items += hex(range.first);
    if (range.last != range.first) items.append(1, '-').append(hex(range.last));
  }
  return items;
}

std::string category_items(char category) {
  return fmt::format("\\p{{{}}}", category) + class_items(category_additions(category));
}

std::string white_space_items() { return class_items(white_space()); }

std::string not_white_space_items() {
  std::vector<CodeRange> gaps;
  char32_t next = 0;
  for (const CodeRange range : white_space()) {
    gaps.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  gaps.push_back({next, kLastCodePoint});
  return class_items(gaps);
}

// Oniguruma lets these two letters, ignoring case, match one ligature or sharp s as well.
bool folds_to_one_character(char32_t first, char32_t second) {
  const auto lower = [](char32_t c) {
    return c < 0x80 ? std::tolower(static_cast<int>(c)) : static_cast<int>(c);
  };
  const int a = lower(first), b = lower(second);
  return (a == 'f' && (b == 'f' || b == 'i' || b == 'l')) || (a == 's' && (b == 's' || b == 't'));
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : rest_(pattern), where_(where) {}

  std::string run() {
    while (!rest_.empty()) step();
    if (!groups_.empty()) fail("a group without its )");
    return out_;
  }

 private:
  enum class Previous { kNothing, kAtom, kLookahead, kQuantified };
  struct Group {
    bool ignores_case;
    bool is_lookahead;
  };

  [[noreturn]] void fail(const std::string& found) const {
    throw expectation_error(where_, "a pattern of the supported constructs", found);
  }

  bool take(std::string_view text) {
    if (!rest_.starts_with(text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }

  char32_t take_character() {
    const char32_t character = front_code_point(rest_);
    rest_.remove_prefix(step_utf8(rest_).length);
    return character;
  }

  bool ignores_case() const { return !groups_.empty() && groups_.back().ignores_case; }

  void open(const char* text, bool caseless, bool lookahead) {
    out_ += text;
    groups_.push_back({caseless || ignores_case(), lookahead});
    previous_ = Previous::kNothing;
    literal_ = 0;
  }

  void atom(const std::string& text) {
    out_ += text;
    previous_ = Previous::kAtom;
    literal_ = 0;
  }

  void literal(char32_t character) {
    const char32_t before = literal_;
    if (ignores_case()) {
      if (character >= 0x80) fail("a character beyond ASCII in (?i:");
      if (folds_to_one_character(before, character)) {
        fail("two letters in (?i: that are one ligature");
      }
    }
    atom(hex(character));
    literal_ = character;
  }

  void step() {
    if (take("(?i:")) return open("(?i:", true, false);
    if (take("(?:")) return open("(?:", false, false);
    if (take("(?=")) return open("(?=", false, true);
    if (take("(?!")) return open("(?!", false, true);
    if (rest_.starts_with("(?") || rest_.starts_with("(*")) {
      fail(fmt::format("the group {}", quote(rest_.substr(0, 3))));
    }
    if (take("(")) return open("(?:", false, false);
    if (take(")")) return close();
    if (take("|")) {
      out_ += '|';
      previous_ = Previous::kNothing;
      literal_ = 0;
      return;
    }
    if (take("[")) return atom(character_class());
    if (const std::string items = take_named_class(); !items.empty()) {
      return atom(fmt::format("[{}]", items));
    }
    if (take("\\")) return literal(escaped_character());
    switch (rest_.front()) {
      case '?':
      case '*':
      case '+':
      case '{':
        return quantifier();
      case '.':
      case '^':
      case '$':
      case ']':
      case '}':
        fail(fmt::format("a bare {}", rest_.front()));
    }
    literal(take_character());
  }

  void close() {
    if (groups_.empty()) fail("a ) without its group");
    out_ += ')';
    previous_ = groups_.back().is_lookahead ? Previous::kLookahead : Previous::kAtom;
    literal_ = 0;
    groups_.pop_back();
  }

  // The items of the \s, \S or \p{..} at the front; empty if none stands there.
  std::string take_named_class() {
    std::string items;
    if (take("\\s")) {
      items = white_space_items();
    } else if (take("\\S")) {
      items = not_white_space_items();
    } else if (take("\\p{")) {
      items = property();
    }
    // Oniguruma folds classes too: [\p{L}] holds the sharp s, so it matches "ss".
    if (!items.empty() && ignores_case()) fail("a class other than of ASCII characters in (?i:");
    return items;
  }

  // After "\p{".
  std::string property() {
    const std::size_t end = rest_.find('}');
    const std::string_view name = rest_.substr(0, end);
    if (end != 1 || category_additions(name[0]).empty()) {
      fail(fmt::format("\\p with {}", quote(name.substr(0, 20))));
    }
    rest_.remove_prefix(2);
    return category_items(name[0]);
  }

  char32_t escaped_character() {
    if (take("r")) return '\r';
    if (take("n")) return '\n';
    if (take("t")) return '\t';
    if (rest_.empty()) fail("a \\ at the end");
    const auto next = static_cast<unsigned char>(rest_.front());
    if (next >= 0x80 || !std::ispunct(next)) {
      fail(fmt::format("\\ before {}", quote(rest_.substr(0, step_utf8(rest_).length))));
    }
    return take_character();
  }

  // After the "[".
  std::string character_class() {
    const bool negated = take("^");
    if (negated && ignores_case()) fail("a negated class in (?i:");
    if (rest_.starts_with("]")) fail("an empty []");
    std::string items = negated ? "[^" : "[";
    while (!take("]")) {
      if (rest_.empty()) fail("a class without its ]");
      if (rest_.starts_with("[")) fail("a [ inside a class");
      if (rest_.starts_with("&&")) fail("&& inside a class");
      const std::string named = take_named_class();
      items += named.empty() ? class_range() : named;
    }
    items += ']';
    return items;
  }

  std::string class_range() {
    const char32_t first = class_character();
    if (!rest_.starts_with("-") || rest_.starts_with("-]")) return hex(first);
    rest_.remove_prefix(1);
    if (rest_.empty() || rest_.starts_with("[") || rest_.starts_with("\\s") ||
        rest_.starts_with("\\S") || rest_.starts_with("\\p")) {
      fail("a range that ends in no character");
    }
    const char32_t last = class_character();
    if (last < first) fail("a range that runs backwards");
    return fmt::format("{}-{}", hex(first), hex(last));
  }

  char32_t class_character() {
    const char32_t character = take("\\") ? escaped_character() : take_character();
    if (ignores_case() && character >= 0x80) fail("a character beyond ASCII in (?i:");
    return character;
  }

  void quantifier() {
    if (previous_ != Previous::kAtom) {
      fail(fmt::format("{} after nothing that can repeat", rest_.front()));
    }
    if (rest_.front() == '{') {
      repeat_count();
    } else {
      out_ += rest_.front();
      rest_.remove_prefix(1);
      if (rest_.starts_with("?") || rest_.starts_with("+")) {
        out_ += rest_.front();
        rest_.remove_prefix(1);
      }
    }
    previous_ = Previous::kQuantified;
    literal_ = 0;
  }

  void repeat_count() {
    const std::size_t end = rest_.find('}');
    const std::string_view count = rest_.substr(1, end == rest_.npos ? 0 : end - 1);
    const bool digits_only = count.find_first_not_of("0123456789,") == count.npos;
    if (count.empty() || !digits_only || count.front() == ',' ||
        count.find(',') != count.rfind(',')) {
      fail(fmt::format("{} where a count should be", quote(rest_.substr(0, 12))));
    }
    out_ += rest_.substr(0, end + 1);
    rest_.remove_prefix(end + 1);
    // Oniguruma reads {n}? and {n}+ in its own way.
    if (rest_.starts_with("?") || rest_.starts_with("+")) fail("a lazy or possessive {}");
  }

  std::string_view rest_;
  const std::string& where_;
  std::string out_;
  std::vector<Group> groups_;
  Previous previous_ = Previous::kNothing;
  char32_t literal_ = 0;  // the literal just written, to find ligatures
};

}  // namespace

std::string translate_split_pattern(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

std::string literal_split_pattern(std::string_view text) {
  std::string pattern;
  while (!text.empty()) {
    pattern += hex(front_code_point(text));
    text.remove_prefix(step_utf8(text).length);
  }
  return pattern;
}

}  // namespace indexcache
