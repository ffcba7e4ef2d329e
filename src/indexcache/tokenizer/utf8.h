// UTF-8, one step at a time, and the byte alphabet of byte-level vocabularies.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace indexcache {

enum class Utf8Unit {
  kCharacter,   // one well-formed character
  kIllFormed,   // bytes that no character starts with: one U+FFFD
  kIncomplete,  // the text ends inside what may still become a character
};

struct Utf8Step {
  Utf8Unit unit;
  std::size_t length;
};

// The unit at the front of `bytes` (not empty). Overlong forms, surrogates and code points above
// U+10FFFF are ill-formed; an ill-formed unit is the longest start of a well-formed character
// (Unicode's "maximal subpart"), as in Rust's from_utf8_lossy.
Utf8Step step_utf8(std::string_view bytes);

// The code point at the front of well-formed UTF-8.
char32_t front_code_point(std::string_view text);

void append_utf8(std::string& text, char32_t code_point);

// Appends `bytes` with every ill-formed unit as U+FFFD. The incomplete unit at the end, if any, is
// not appended but returned.
std::string_view append_lossy(std::string& text, std::string_view bytes);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Byte-level vocabularies write each byte as one printable character (GPT-2's map). The bytes that
// `token` stands for, or nothing if it has a character outside that alphabet.
std::optional<std::string> bytes_of_token(std::string_view token);

}  // namespace indexcache
