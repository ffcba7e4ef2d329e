// Any bytes as a tokenizer.json: refused with an InputError, or a tokenizer that encodes and
// decodes. Small inputs seldom are good files, so an input may also be a JSON Patch (RFC 6902) to a
// good one.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "tokenizer/small_tokenizer.h"

namespace {

void try_file(std::string_view json) {
  try {
    const auto tokenizer = indexcache::Tokenizer::from_json(json, "t.json");
    const std::string text = "a <|user|> abc's 1234\n\n \u1C89\u00E9x";
    tokenizer.decode(tokenizer.encode(text));
  } catch (const indexcache::InputError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try_file(input);
  const auto patch = nlohmann::json::parse(input, nullptr, /*allow_exceptions=*/false);
  if (!patch.is_array()) return 0;
  static const nlohmann::json good = indexcache::testing_support::small_tokenizer();
  nlohmann::json file = good;
  for (const auto& step : patch) {
    try {
      file.patch_inplace(nlohmann::json::array({step}));
    } catch (const nlohmann::json::exception&) {
    }
  }
  try_file(file.dump());
  return 0;
}
