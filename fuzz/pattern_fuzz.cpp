// Any text as a pattern: it is refused with an InputError, or parses to a pattern that its own text
// gives back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/policy/pattern.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using indexcache::InputError;
  using indexcache::Pattern;
  if (size < 1) return 0;
  const int num_layers = data[0] % 80 + 1;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    const Pattern pattern = Pattern::parse(text, num_layers);
    if (pattern.num_layers() != num_layers || !pattern.is_full(0)) std::abort();
    if (Pattern::parse(pattern.str(), num_layers) != pattern) std::abort();
  } catch (const InputError&) {
  }
  try {
    const int keep = indexcache::parse_keep(text, num_layers);
    if (keep < 1 || keep > num_layers) std::abort();
  } catch (const InputError&) {
  }
  return 0;
}
