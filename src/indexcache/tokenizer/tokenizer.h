// Byte-level BPE tokenizer from a Hugging Face tokenizer.json, with the GLM and the DeepSeek
// pre-tokenizers.
//
// encode(text) gives the ids the `tokenizers` library gives; decode(ids) the text it gives (invalid
// UTF-8 becomes U+FFFD).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace indexcache {

class Tokenizer {
 public:
  // Throws InputError for files that are malformed or ask for something unsupported, naming it.
  static Tokenizer from_file(const std::filesystem::path& tokenizer_json);
  static Tokenizer from_json(std::string_view json, const std::string& where);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Special tokens that stand in the text become their ids. Throws InputError with the byte offset
  // if `text` is not UTF-8. Thread-safe.
  std::vector<std::int32_t> encode(std::string_view text) const;
  // Any id sequence; ids outside the vocabulary decode to nothing, as in the tokenizers library.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens = false) const;

  std::optional<std::int32_t> token_id(std::string_view token) const;
  std::optional<std::string> token(std::int32_t id) const;
  std::int32_t vocab_size() const;  // largest id + 1

  // Decodes a stream, holding back bytes that may still become a character.
  class Stream {
   public:
    explicit Stream(const Tokenizer& tokenizer, bool skip_special_tokens = true);
    std::string push(std::int32_t id);  // text that is certain now, possibly empty
    std::string finish();               // the rest; partial characters as U+FFFD
   private:
    const Tokenizer* tokenizer_;
    bool skip_special_tokens_;
    std::string pending_;
  };

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The byte offset of the first byte that is not valid UTF-8 (overlong forms and surrogates are
// not), if any.
std::optional<std::size_t> find_invalid_utf8(std::string_view text);

}  // namespace indexcache
