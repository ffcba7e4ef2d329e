#include "indexcache/tokenizer/tokenizer.h"

#include <mutex>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/tokenizer/tokenizer_file.h"
#include "indexcache/tokenizer/utf8.h"

namespace indexcache {
namespace {

struct Entry {
  std::string token;  // as the file writes it
  std::string bytes;  // what it decodes to
  bool known = false;
  bool special = false;
};

std::vector<Entry> make_entries(const TokenizerFile& file) {
  std::vector<Entry> entries;
  const auto add = [&](const std::string& token, std::int32_t id, bool special) {
    if (static_cast<std::size_t>(id) >= entries.size()) entries.resize(id + std::size_t{1});
    // A token outside the byte alphabet stands for its own text.
    entries[id] = {token, bytes_of_token(token).value_or(token), true, special};
  };
  for (const auto& entry : file.vocabulary) add(entry.token, entry.id, false);
  for (const AddedToken& token : file.added_tokens) add(token.content, token.id, token.special);
  return entries;
}

IdByBytes make_ids_by_bytes(const TokenizerFile& file) {
  IdByBytes ids;
  for (const auto& entry : file.vocabulary) {
    if (auto bytes = bytes_of_token(entry.token)) ids.emplace(*std::move(bytes), entry.id);
  }
  return ids;
}

// The working memory of one encode call.
struct Scratch final : PreTokenizer::Sink {
  void take(std::string_view piece) override { encoding->encode(piece, byte_pair, *ids); }

  PreTokenizer::Scratch pre_tokenizer;
  BytePairEncoding::Scratch byte_pair;
  const BytePairEncoding* encoding = nullptr;
  std::vector<std::int32_t>* ids = nullptr;
};

}  // namespace

struct Tokenizer::State {
  State(TokenizerFile file, const std::string& where)
      : entries(make_entries(file)),
        encoding(make_ids_by_bytes(file), file.merges, file.whole_piece),
        pre_tokenizer(file.steps, where + ": pre_tokenizer"),
        added_tokens(std::move(file.added_tokens)) {
    for (std::size_t id = 0; id < entries.size(); ++id) {
      if (entries[id].known) ids.emplace(entries[id].token, static_cast<std::int32_t>(id));
    }
  }

  // Scratches are lent to calls and come back warm: as many exist as calls ever ran at once.
  std::unique_ptr<Scratch> lend() {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<Scratch>();
    auto scratch = std::move(idle.back());
    idle.pop_back();
    return scratch;
  }
  void give_back(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(scratch));
  }

  std::vector<Entry> entries;  // by id
  std::unordered_map<std::string, std::int32_t, BytesHash, std::equal_to<>> ids;
  BytePairEncoding encoding;
  PreTokenizer pre_tokenizer;
  AddedTokens added_tokens;
  std::mutex mutex;
  std::vector<std::unique_ptr<Scratch>> idle;
};

Tokenizer Tokenizer::from_file(const std::filesystem::path& tokenizer_json) {
  return from_json(read_file(tokenizer_json), tokenizer_json.string());
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& where) {
  return Tokenizer(std::make_unique<State>(parse_tokenizer_file(json, where), where));
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  if (const auto offset = find_invalid_utf8(text)) {
    throw expectation_error("text to encode", "UTF-8",
                            fmt::format("byte 0x{:02X} at offset {}",
                                        static_cast<unsigned char>(text[*offset]), *offset));
  }
  std::vector<std::int32_t> ids;
  auto scratch = state_->lend();
  scratch->encoding = &state_->encoding;
  scratch->ids = &ids;
  for (const AddedTokens::Part& part : state_->added_tokens.split(text)) {
    if (part.id == AddedTokens::kText) {
      state_->pre_tokenizer.split(part.text, scratch->pre_tokenizer, *scratch);
    } else {
      ids.push_back(part.id);
    }
  }
  state_->give_back(std::move(scratch));
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  Stream stream(*this, skip_special_tokens);
  std::string text;
  for (const std::int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view token) const {
  const auto found = state_->ids.find(token);
  if (found == state_->ids.end()) return std::nullopt;
  return found->second;
}

std::optional<std::string> Tokenizer::token(std::int32_t id) const {
  if (id < 0 || id >= vocab_size() || !state_->entries[id].known) return std::nullopt;
  return state_->entries[id].token;
}

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(state_->entries.size());
}

Tokenizer::Stream::Stream(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string Tokenizer::Stream::push(std::int32_t id) {
  const auto& entries = tokenizer_->state_->entries;
  if (id < 0 || static_cast<std::size_t>(id) >= entries.size()) return "";
  if (skip_special_tokens_ && entries[id].special) return "";
  pending_ += entries[id].bytes;
  std::string text;
  pending_ = append_lossy(text, pending_);
  return text;
}

std::string Tokenizer::Stream::finish() {
  if (pending_.empty()) return "";
  pending_.clear();
  return std::string(kReplacementCharacter);
}

}  // namespace indexcache
