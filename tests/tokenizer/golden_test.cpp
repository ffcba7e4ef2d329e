// Equality with the `tokenizers` library on tests/golden/tokenizer
// (tools/make_tokenizer_goldens.py).
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

#include "indexcache/base/file.h"
#include "indexcache/tokenizer/tokenizer.h"
#include "indexcache/tokenizer/utf8.h"

namespace indexcache {
namespace {

using Ids = std::vector<std::int32_t>;

const std::filesystem::path kFolder =
    std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "tests/golden/tokenizer";

nlohmann::json read_json(const std::filesystem::path& path) {
  return nlohmann::json::parse(read_file(path));
}

class TokenizerGolden : public testing::TestWithParam<std::string> {
 protected:
  Tokenizer tokenizer_ = Tokenizer::from_file(kFolder / GetParam() / "tokenizer.json");
  nlohmann::json golden_ = read_json(kFolder / GetParam() / "golden.json");
};

TEST_P(TokenizerGolden, EncodesAsTheLibrary) {
  const nlohmann::json texts = read_json(kFolder / "texts.json");
  const nlohmann::json& encoded = golden_.at("encoded");
  ASSERT_EQ(texts.size(), encoded.size());
  ASSERT_GT(texts.size(), 1000u);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    EXPECT_EQ(tokenizer_.encode(text), encoded[i].get<Ids>()) << "text " << i << ": " << text;
  }
}

TEST_P(TokenizerGolden, DecodesAsTheLibrary) {
  ASSERT_GE(golden_.at("decoded").size(), 400u);
  for (const auto& decoded : golden_.at("decoded")) {
    const auto ids = decoded[0].get<Ids>();
    EXPECT_EQ(tokenizer_.decode(ids), decoded[1].get<std::string>()) << decoded[0];
    EXPECT_EQ(tokenizer_.decode(ids, true), decoded[2].get<std::string>()) << decoded[0];
  }
}

// Every code point, in the texts of the script's code_point_hashes().
std::string code_point_text(char32_t first) {
  std::string text;
  for (char32_t c = first; c < first + 16; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string character;
    append_utf8(character, c);
    text += "a" + character + "1 " + character + "b" + character + "\n";
  }
  return text;
}

TEST_P(TokenizerGolden, KnowsEveryCodePointAsTheLibrary) {
  const nlohmann::json& hashes = golden_.at("code_point_hashes");
  ASSERT_EQ(hashes.size(), 0x110u);
  for (std::size_t block = 0; block < hashes.size(); ++block) {
    std::uint64_t hash = 0xCBF29CE484222325u;
    const auto add = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100000001B3u; };
    for (std::size_t start = block * 4096; start < (block + 1) * 4096; start += 16) {
      const Ids ids = tokenizer_.encode(code_point_text(static_cast<char32_t>(start)));
      for (const std::int32_t id : ids) add(static_cast<std::uint64_t>(id));
      add(ids.size());
    }
    EXPECT_EQ(hash, std::stoull(hashes[block].get<std::string>(), nullptr, 16))
        << "code points from 0x" << std::hex << block * 4096;
  }
}

TEST_P(TokenizerGolden, StreamsWhatItDecodes) {
  for (const auto& decoded : golden_.at("decoded")) {
    Tokenizer::Stream stream(tokenizer_, false);
    std::string text;
    for (const std::int32_t id : decoded[0].get<Ids>()) {
      const std::string more = stream.push(id);
      EXPECT_FALSE(find_invalid_utf8(more)) << decoded[0];
      text += more;
    }
    EXPECT_EQ(text + stream.finish(), decoded[1].get<std::string>()) << decoded[0];
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerGolden, testing::Values("glm", "deepseek", "flags"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace indexcache
