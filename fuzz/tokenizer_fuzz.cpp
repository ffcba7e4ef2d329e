// Any text and any ids on good tokenizers: text that is UTF-8 comes back from its ids, other text
// is refused at the byte where it breaks, and a stream gives what decoding at once gives.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "tokenizer/small_tokenizer.h"

namespace {

using indexcache::Tokenizer;

Tokenizer make_glm() {
  return Tokenizer::from_json(indexcache::testing_support::small_tokenizer().dump(), "glm");
}

Tokenizer make_deepseek() {
  auto file = indexcache::testing_support::small_tokenizer();
  auto& steps = file["pre_tokenizer"]["pretokenizers"];
  const auto byte_level = steps[1];
  auto split = steps[0];
  steps = nlohmann::json::array();
  for (
      const char* pattern :
      {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
       R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"}) {
    split["pattern"]["Regex"] = pattern;
    steps.push_back(split);
  }
  steps.push_back(byte_level);
  return Tokenizer::from_json(file.dump(), "deepseek");
}

void try_text(const Tokenizer& tokenizer, std::string_view text) {
  const auto invalid = indexcache::find_invalid_utf8(text);
  try {
    const auto ids = tokenizer.encode(text);
    if (invalid || tokenizer.decode(ids) != text) std::abort();
  } catch (const indexcache::InputError&) {
    if (!invalid) std::abort();
  }
}

void try_ids(const Tokenizer& tokenizer, std::string_view bytes) {
  std::vector<std::int32_t> ids(bytes.size() / 2);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::int16_t id = 0;
    std::memcpy(&id, bytes.data() + 2 * i, sizeof(id));
    ids[i] = id;
  }
  for (const bool skip_special_tokens : {false, true}) {
    Tokenizer::Stream stream(tokenizer, skip_special_tokens);
    std::string text;
    for (const std::int32_t id : ids) {
      text += stream.push(id);
      if (indexcache::find_invalid_utf8(text)) std::abort();
    }
    text += stream.finish();
    if (text != tokenizer.decode(ids, skip_special_tokens)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Tokenizer glm = make_glm(), deepseek = make_deepseek();
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  for (const Tokenizer* tokenizer : {&glm, &deepseek}) {
    try_text(*tokenizer, input);
    try_ids(*tokenizer, input);
  }
  return 0;
}
