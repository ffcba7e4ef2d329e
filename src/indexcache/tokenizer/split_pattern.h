// Pre-tokenizer patterns, from the `tokenizers` library's regular expressions (Oniguruma) to
// PCRE2's.
//
// The two languages differ in quiet ways ($, \d, \h, classes inside classes, folding of ligatures)
// and PCRE2 10.42 knows an older Unicode. So only the part in which both say the same is let
// through, rewritten with the library's Unicode classes; everything else is refused by name:
//
//   literals, escaped ASCII punctuation, \r \n \t      (\s \S)      \p{L} \p{M} \p{N} \p{P} \p{S}
//   [...] and [^...] of these and of ranges      |     (...) (?:...) (?=...) (?!...)
//   (?i:...) around ASCII and [...] of ASCII      ? * + {m} {m,} {m,n}, and lazy or possessive ? * +
#pragma once

#include <string>
#include <string_view>

namespace indexcache {

// The pattern for pcre2_compile with PCRE2_UTF. Throws InputError starting with `where`.
std::string translate_split_pattern(std::string_view pattern, const std::string& where);

// A pattern that matches `text` itself.
std::string literal_split_pattern(std::string_view text);

}  // namespace indexcache
