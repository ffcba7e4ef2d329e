#include "indexcache/tokenizer/tokenizer_file.h"

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "indexcache/base/error.h"
#include "indexcache/tokenizer/split_pattern.h"
#include "indexcache/tokenizer/utf8.h"

namespace indexcache {
namespace {

using Json = nlohmann::json;

// Ids index tables; no vocabulary comes near this.
constexpr std::int64_t kMaxId = (1 << 20) - 1;
// Steps nest in each other when they run.
constexpr std::size_t kMaxSteps = 64;

// ByteLevel's own pattern (GPT-2's).
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string describe(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  return value.dump();
}

// A value in the file and the path that names it in errors.
class Value {
 public:
  Value(const Json& json, std::string path, const char* separator = ".")
      : json_(&json), path_(std::move(path)), separator_(separator) {}

  const std::string& path() const { return path_; }
  bool is_null() const { return json_->is_null(); }
  bool is_string() const { return json_->is_string(); }

  [[noreturn]] void fail(std::string_view expected) const {
    throw expectation_error(path_, expected, describe(*json_));
  }

  // A missing member counts as null.
  Value operator[](const char* key) const {
    static const Json kNull;
    if (!json_->is_object()) fail("an object");
    const auto member = json_->find(key);
    return {member == json_->end() ? kNull : *member, path_ + separator_ + key};
  }
  const Json& object() const {
    if (!json_->is_object()) fail("an object");
    return *json_;
  }
  const Json& array() const {
    if (!json_->is_array()) fail("an array");
    return *json_;
  }
  std::vector<Value> elements() const {
    std::vector<Value> values;
    for (const Json& element : array()) {
      values.emplace_back(element, fmt::format("{}[{}]", path_, values.size()));
    }
    return values;
  }
  const std::string& string() const {
    if (!json_->is_string()) fail("a string");
    return json_->get_ref<const std::string&>();
  }
  bool boolean() const {
    if (!json_->is_boolean()) fail("true or false");
    return json_->get<bool>();
  }
  bool boolean_or(bool missing) const { return is_null() ? missing : boolean(); }
  std::int32_t id() const {
    if (!json_->is_number_integer() || *json_ < 0 || *json_ > kMaxId) {
      fail(fmt::format("an id in 0..{}", kMaxId));
    }
    return json_->get<std::int32_t>();
  }
  double number() const {
    if (!json_->is_number()) fail("a number");
    return json_->get<double>();
  }

 private:
  const Json* json_;
  std::string path_;
  const char* separator_;
};

void expect_null(const Value& value, const char* why) {
  if (!value.is_null()) value.fail(fmt::format("null ({})", why));
}

// DeepSeek's files write no normalizer as an empty sequence.
void check_normalizer(const Value& value) {
  if (value.is_null()) return;
  if (value["type"].string() != "Sequence" || !value["normalizers"].array().empty()) {
    value["type"].fail("no normalizer (text is encoded as it is)");
  }
}

void read_vocabulary(const Value& value, TokenizerFile& file) {
  std::unordered_set<std::int32_t> seen;
  for (const auto& [token, id] : value.object().items()) {
    const Value entry(id, fmt::format("{}[{}]", value.path(), quote(token)));
    file.vocabulary.push_back({token, entry.id()});
    if (!seen.insert(entry.id()).second) entry.fail("an id of its own");
  }
  std::array<bool, 256> covered{};
  for (const auto& entry : file.vocabulary) {
    const auto bytes = bytes_of_token(entry.token);
    if (bytes && bytes->size() == 1) covered[static_cast<unsigned char>(bytes->front())] = true;
  }
  for (int byte = 0; byte < 0xF5; ++byte) {
    if (byte == 0xC0 || byte == 0xC1 || covered[byte]) continue;  // C0 and C1 start no character
    throw expectation_error(value.path(), "a token for every byte of UTF-8",
                            fmt::format("none for 0x{:02X}", byte));
  }
}

std::pair<std::string, std::string> read_merge(const Value& value) {
  if (!value.is_string()) {
    const std::vector<Value> pair = value.elements();
    if (pair.size() != 2) value.fail("two tokens");
    return {pair[0].string(), pair[1].string()};
  }
  const std::string& text = value.string();
  const std::size_t space = text.find(' ');
  if (space == text.npos || text.find(' ', space + 1) != text.npos) {
    value.fail("two tokens with one space between them");
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const Value& value, TokenizerFile& file) {
  std::unordered_map<std::string_view, std::int32_t> ids;
  for (const auto& entry : file.vocabulary) ids.emplace(entry.token, entry.id);
  std::size_t index = 0;
  for (const Json& element : value.array()) {
    const Value merge(element, fmt::format("{}[{}]", value.path(), index++));
    // A file converted from merges.txt may have kept its first line.
    if (merge.is_string() && merge.string().starts_with("#version")) continue;
    const auto [left, right] = read_merge(merge);
    const auto id = [&](const std::string& token) {
      const auto found = ids.find(token);
      if (found == ids.end()) {
        throw expectation_error(merge.path(), "tokens of the vocabulary", quote(token));
      }
      return found->second;
    };
    file.merges.push_back({id(left), id(right), id(left + right)});
  }
}

void read_model(const Value& model, TokenizerFile& file) {
  const Value type = model["type"];
  if (!type.is_string() || type.string() != "BPE") type.fail("\"BPE\"");
  const Value dropout = model["dropout"];
  if (!dropout.is_null() && dropout.number() != 0) dropout.fail("null (encoding is deterministic)");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Value value = model[affix];
    if (!value.is_null() && !value.string().empty()) value.fail("null (byte-level BPE has none)");
  }
  if (model["byte_fallback"].boolean_or(false)) {
    model["byte_fallback"].fail("false (the vocabulary is byte-level)");
  }
  // unk_token and fuse_unk say nothing here: no byte is without its token.
  file.whole_piece =
      model["ignore_merges"].boolean_or(false) ? WholePiece::kIsTaken : WholePiece::kIsMerged;
  read_vocabulary(model["vocab"], file);
  read_merges(model["merges"], file);
}

SplitStep read_split(const Value& split) {
  SplitStep step;
  const Value pattern = split["pattern"];
  if (const Value text = pattern["String"]; !text.is_null()) {
    step.pattern = literal_split_pattern(text.string());
  } else if (const Value regex = pattern["Regex"]; !regex.is_null()) {
    step.pattern = translate_split_pattern(regex.string(), regex.path());
  } else {
    pattern.fail("an object with \"Regex\" or \"String\"");
  }
  const bool inverted = split["invert"].boolean();
  const Value behavior = split["behavior"];
  if (behavior.string() == "Isolated") {
    step.keeps = SplitKeeps::kMatchesAndGaps;
  } else if (behavior.string() == "Removed") {
    step.keeps = inverted ? SplitKeeps::kMatches : SplitKeeps::kGaps;
  } else {
    behavior.fail("\"Isolated\" or \"Removed\"");
  }
  return step;
}

// Returns whether this was the ByteLevel that ends the steps.
bool read_pre_tokenizer(const Value& value, TokenizerFile& file) {
  const std::string& type = value["type"].string();
  if (type == "Split") {
    file.steps.emplace_back(read_split(value));
    return false;
  }
  if (type != "ByteLevel") value["type"].fail("\"Split\" or \"ByteLevel\"");
  if (value["add_prefix_space"].boolean()) file.steps.emplace_back(PrefixSpaceStep{});
  if (value["use_regex"].boolean_or(true)) {
    file.steps.emplace_back(
        SplitStep{translate_split_pattern(kByteLevelPattern, value.path()), {}});
  }
  return true;
}

void read_pre_tokenizers(const Value& value, TokenizerFile& file) {
  if (value.is_null()) value.fail("a byte-level pre-tokenizer");
  std::vector<Value> parts{value};
  if (value["type"].string() == "Sequence") parts = value["pretokenizers"].elements();
  if (parts.size() > kMaxSteps) {
    throw expectation_error(value.path(), fmt::format("at most {} pre-tokenizers", kMaxSteps),
                            std::to_string(parts.size()));
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const bool is_byte_level = read_pre_tokenizer(parts[i], file);
    if (is_byte_level != (i + 1 == parts.size())) {
      parts[i]["type"].fail("ByteLevel as the last pre-tokenizer and nowhere else");
    }
  }
  if (parts.empty()) value.fail("a sequence that ends in ByteLevel");
}

// encode() adds no special tokens, so only what else a post-processor might do matters.
void check_post_processor(const Value& value) {
  if (value.is_null()) return;
  const std::string& type = value["type"].string();
  if (type == "ByteLevel") return;  // moves offsets only
  if (type == "Sequence") {
    for (const Value& part : value["processors"].elements()) {
      if (part["type"].is_string() && part["type"].string() == "Sequence") {
        part["type"].fail("no Sequence inside a Sequence");
      }
      check_post_processor(part);
    }
    return;
  }
  if (type != "TemplateProcessing") {
    value["type"].fail("\"ByteLevel\", \"TemplateProcessing\" or a Sequence of these");
  }
  int sequences = 0;
  for (const Value& piece : value["single"].elements()) {
    if (!piece["Sequence"].is_null()) ++sequences;
  }
  if (sequences != 1) value["single"].fail("the text once");
}

// The library numbers added tokens itself: a token of the model keeps its id, the others follow.
// An id that says otherwise would mean another token to the model than to us.
std::int32_t library_id(const std::string& content,
                        const std::unordered_map<std::string_view, std::int32_t>& model_ids,
                        std::int32_t& next_id) {
  const auto in_model = model_ids.find(content);
  return in_model != model_ids.end() ? in_model->second : next_id++;
}

void read_added_tokens(const Value& value, TokenizerFile& file) {
  if (value.is_null()) return;
  std::unordered_map<std::string_view, std::int32_t> model_ids;
  std::unordered_set<std::int32_t> taken;
  for (const auto& entry : file.vocabulary) {
    model_ids.emplace(entry.token, entry.id);
    taken.insert(entry.id);
  }
  std::unordered_set<std::string> seen;
  auto next_id = static_cast<std::int32_t>(file.vocabulary.size());
  for (const Value& entry : value.elements()) {
    AddedToken token;
    token.content = entry["content"].string();
    token.id = entry["id"].id();
    token.single_word = entry["single_word"].boolean();
    token.lstrip = entry["lstrip"].boolean();
    token.rstrip = entry["rstrip"].boolean();
    token.normalized = entry["normalized"].boolean();
    token.special = entry["special"].boolean();
    if (token.content.empty()) entry["content"].fail("a text");
    if (!seen.insert(token.content).second) entry["content"].fail("a token that is added once");
    const bool is_new = !model_ids.contains(token.content);
    const std::int32_t expected = library_id(token.content, model_ids, next_id);
    if (token.id != expected) {
      entry["id"].fail(fmt::format("{} (the order of the added tokens gives it)", expected));
    }
    if (is_new && !taken.insert(token.id).second) entry["id"].fail("an id of its own");
    file.added_tokens.push_back(std::move(token));
  }
}

Json parse_json(std::string_view text, const std::string& where) {
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& error) {
    throw expectation_error(where, "JSON", fmt::format("a syntax error at byte {}", error.byte));
  } catch (const Json::exception&) {
    throw expectation_error(where, "JSON", "a number beyond any range");
  }
}

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  const Value root(json, where, ": ");
  TokenizerFile file;
  const Value version = root["version"];
  if (!version.is_null() && version.string() != "1.0") version.fail("\"1.0\"");
  expect_null(root["truncation"], "texts are encoded whole");
  expect_null(root["padding"], "texts are not padded");
  check_normalizer(root["normalizer"]);
  if (const Value decoder = root["decoder"];
      decoder.is_null() || decoder["type"].string() != "ByteLevel") {
    decoder.fail("a ByteLevel decoder");
  }
  check_post_processor(root["post_processor"]);
  read_pre_tokenizers(root["pre_tokenizer"], file);
  read_model(root["model"], file);
  read_added_tokens(root["added_tokens"], file);
  return file;
}

}  // namespace indexcache
