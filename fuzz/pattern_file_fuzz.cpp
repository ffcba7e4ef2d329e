// Any bytes as a pattern file: refused with an InputError, or read to a file that its own JSON gives
// back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/search/pattern_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto file = indexcache::parse_pattern_file(text, "fuzz");
    const auto json = indexcache::to_json(file);
    if (indexcache::to_json(indexcache::parse_pattern_file(json.dump(), "fuzz")) != json) {
      std::abort();
    }
    for (const char* keep : {"1", "1/2", "64"}) {
      try {
        if (file.at(keep, "fuzz").num_layers() != file.setup.num_layers) std::abort();
      } catch (const indexcache::InputError&) {
      }
    }
  } catch (const indexcache::InputError&) {
  }
  return 0;
}
