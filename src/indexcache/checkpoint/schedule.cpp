#include "indexcache/checkpoint/schedule.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/config.h"
#include "indexcache/checkpoint/config_reader.h"
#include "indexcache/checkpoint/strict_json.h"

namespace indexcache {
namespace {

constexpr int kDefaultOffset = 2;

// The Full layers that a list of words states; `words` gives each entry's role.
Pattern pattern_of_words(const std::vector<std::string>& words, const std::string& where,
                         bool letters_allowed) {
  std::vector<int> full_layers;
  for (int layer = 0; layer < static_cast<int>(words.size()); ++layer) {
    const auto& word = words[layer];
    const bool full = word == "full" || (letters_allowed && word == "F");
    const bool shared = word == "shared" || (letters_allowed && word == "S");
    if (!full && !shared) {
      throw expectation_error(
          fmt::format("{}: layer {}", where, layer),
          letters_allowed ? "F or S (full or shared)" : "\"full\" or \"shared\"", quote(word));
    }
    if (full) full_layers.push_back(layer);
  }
  if (full_layers.empty() || full_layers[0] != 0) {
    throw expectation_error(where + ": layer 0", "Full", "Shared");
  }
  return Pattern::nearest(full_layers, static_cast<int>(words.size()));
}

std::vector<std::string> letters(const std::string& text) {
  std::vector<std::string> words;
  for (const char letter : text) words.emplace_back(1, letter);
  return words;
}

std::optional<Pattern> read_pattern_key(const ConfigReader& reader, int num_layers) {
  const auto* value = reader.find("index_topk_pattern");
  if (value == nullptr) return std::nullopt;
  const auto where = reader.at("index_topk_pattern");
  if (!value->is_string()) {
    return pattern_of_words(reader.texts("index_topk_pattern", num_layers), where, true);
  }
  const auto words = letters(value->get<std::string>());
  if (words.size() != static_cast<std::size_t>(num_layers)) {
    throw expectation_error(where, fmt::format("{} letters F or S, one a layer", num_layers),
                            fmt::format("{}", words.size()));
  }
  return pattern_of_words(words, where, true);
}

std::optional<Pattern> read_sources_key(const ConfigReader& reader, int num_layers) {
  if (reader.find("indexcache_sources") == nullptr) return std::nullopt;
  const auto where = reader.at("indexcache_sources");
  const auto list = reader.integers("indexcache_sources");
  if (list.size() != static_cast<std::size_t>(num_layers)) {
    throw expectation_error(where, fmt::format("{} sources, one a layer", num_layers),
                            fmt::format("{}", list.size()));
  }
  std::vector<int> sources;
  for (const std::int64_t source : list) {
    // from_sources refuses the rest; this only keeps the value in an int.
    sources.push_back(static_cast<int>(std::clamp<std::int64_t>(source, INT32_MIN, INT32_MAX)));
  }
  try {
    return Pattern::from_sources(std::move(sources));
  } catch (const InputError& error) {
    throw input_error("{}: {}", where, error.what());
  }
}

// --- How each engine reads the file -------------------------------------------------------------

struct EngineRule {
  const char* reader;
  bool reads_types, reads_pattern;
  int default_offset;
  // Its formula is max(layer - offset + shift, 0) mod freq = 0.
  int shift;
};

// Spec section 3.1; precedence is indexer_types, index_topk_pattern, index_topk_freq. A pattern
// may be shorter than the model: layers beyond it are Full.
constexpr EngineRule kVllm = {"vLLM", false, true, 2, 1};
constexpr EngineRule kSglang = {"SGLang", false, true, 2, 1};
constexpr EngineRule kTensorRt = {"TensorRT-LLM", false, true, 2, 1};
constexpr EngineRule kPaperPatch = {"the paper's patch", false, true, 1, 0};
constexpr EngineRule kAtom = {"ATOM", true, true, 1, 0};
constexpr EngineRule kSlime = {"slime", false, false, 0, 1};

ScheduleReading finish(ScheduleReading reading, const std::vector<bool>& full) {
  std::vector<int> full_layers;
  for (int layer = 0; layer < static_cast<int>(full.size()); ++layer) {
    if (full[layer]) full_layers.push_back(layer);
  }
  if (full[0]) {
    reading.pattern = Pattern::nearest(full_layers, static_cast<int>(full.size()));
  } else {
    reading.remark = "makes layer 0 Shared, which has nothing to reuse";
  }
  return reading;
}

// Entries of a list or letters of a string, as Python's indexing gives them.
std::vector<std::string> entries_of(const nlohmann::json& value) {
  if (value.is_string()) return letters(value.get<std::string>());
  std::vector<std::string> words;
  for (const auto& entry : value.is_array() ? value : nlohmann::json::array()) {
    words.push_back(entry.is_string() ? entry.get<std::string>() : "");
  }
  return words;
}

ScheduleReading read_words(ScheduleReading reading, const std::vector<std::string>& words,
                           const std::string& shared_word, int num_layers) {
  if (words.size() != static_cast<std::size_t>(num_layers)) {
    reading.remark = words.size() < static_cast<std::size_t>(num_layers)
                         ? fmt::format("takes the layers past its {} entries as Full", words.size())
                         : fmt::format("ignores the entries past layer {}", num_layers - 1);
  }
  std::vector<bool> full(num_layers, true);
  for (std::size_t layer = 0; layer < words.size() && layer < full.size(); ++layer) {
    full[layer] = words[layer] != shared_word;
  }
  auto remark = reading.remark;
  reading = finish(std::move(reading), full);
  if (reading.pattern) reading.remark = remark;
  return reading;
}

ScheduleReading read_frequency(ScheduleReading reading, const nlohmann::json& json,
                               int default_offset, int shift, int num_layers) {
  std::int64_t frequency = 1;
  std::int64_t offset = default_offset;
  for (const auto& [key, target] :
       {std::pair("index_topk_freq", &frequency), std::pair("index_skip_topk_offset", &offset)}) {
    const auto found = json.find(key);
    if (found == json.end() || found->is_null()) continue;
    if (!found->is_number_integer()) {
      reading.remark = fmt::format("fails: {} is no integer", key);
      return reading;
    }
    // Larger numbers mean the same as these bounds for any number of layers.
    *target = std::clamp<std::int64_t>(found->get<std::int64_t>(), -1'000'000, 1'000'000);
  }
  if (frequency < 1) {
    reading.remark = "fails: index_topk_freq is not positive";
    return reading;
  }
  std::vector<bool> full(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    full[layer] = std::max<std::int64_t>(layer - offset + shift, 0) % frequency == 0;
  }
  return finish(std::move(reading), full);
}

bool has(const nlohmann::json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && !found->is_null();
}

// All layers Full, and why, if the file states a schedule: under keys that this reader passes over.
ScheduleReading read_none(ScheduleReading reading, const nlohmann::json& json, int num_layers) {
  reading.pattern = Pattern::full(num_layers);
  for (const char* key : {"indexer_types", "index_topk_pattern", "index_topk_freq"}) {
    if (!has(json, key)) continue;
    reading.remark += reading.remark.empty() ? "does not read " : ", ";
    reading.remark += key;
  }
  return reading;
}

ScheduleReading read_as(const EngineRule& rule, const nlohmann::json& json, int num_layers) {
  ScheduleReading reading{.reader = rule.reader, .key = {}, .pattern = {}, .remark = {}};
  if (rule.reads_types && has(json, "indexer_types")) {
    reading.key = "indexer_types";
    return read_words(std::move(reading), entries_of(json["indexer_types"]), "shared", num_layers);
  }
  if (rule.reads_pattern && has(json, "index_topk_pattern")) {
    reading.key = "index_topk_pattern";
    return read_words(std::move(reading), entries_of(json["index_topk_pattern"]), "S", num_layers);
  }
  if (has(json, "index_topk_freq")) {
    reading.key = "index_topk_freq";
    return read_frequency(std::move(reading), json, rule.default_offset, rule.shift, num_layers);
  }
  return read_none(std::move(reading), json, num_layers);
}

ScheduleReading read_as_transformers(const nlohmann::json& json, Architecture architecture,
                                     int num_layers) {
  ScheduleReading reading{.reader = "transformers", .key = {}, .pattern = {}, .remark = {}};
  if (architecture == Architecture::kDeepseekV32) {
    reading.pattern = Pattern::full(num_layers);
    reading.remark = "knows no schedule for deepseek_v32: runs an indexer in every layer";
    return reading;
  }
  const auto types = json.find("indexer_types");
  const bool typed = has(json, "indexer_types");
  if (typed || has(json, "index_topk_pattern")) {
    reading.key = typed ? "indexer_types" : "index_topk_pattern";
    const auto& value = typed ? *types : json["index_topk_pattern"];
    const auto words = entries_of(value);
    if (words.size() < static_cast<std::size_t>(num_layers)) {
      reading.remark = fmt::format("fails: {} entries for {} layers", words.size(), num_layers);
      return reading;
    }
    // A string has letters, a list the words themselves: letters in a list are not "shared".
    return read_words(std::move(reading), words, value.is_string() ? "S" : "shared", num_layers);
  }
  if (json.contains("index_topk_freq")) {
    reading.key = "index_topk_freq";
    if (json["index_topk_freq"].is_null()) {
      reading.remark = "fails: index_topk_freq is null";
      return reading;
    }
    auto clamped = json;
    if (json["index_topk_freq"].is_number_integer()) {
      clamped["index_topk_freq"] =
          std::max(json["index_topk_freq"].get<std::int64_t>(), std::int64_t{1});
    }
    return read_frequency(std::move(reading), clamped, kDefaultOffset, 1, num_layers);
  }
  reading.pattern = Pattern::full(num_layers);
  return reading;
}

ScheduleReading read_as_llama_cpp(const nlohmann::json& json, Architecture architecture,
                                  int num_layers) {
  constexpr std::int64_t kGlm52Context = 1 << 20;
  ScheduleReading reading{.reader = "llama.cpp", .key = {}, .pattern = {}, .remark = {}};
  if (architecture == Architecture::kGlmMoeDsa && has(json, "indexer_types")) {
    reading.key = "indexer_types";
    const auto words = entries_of(json["indexer_types"]);
    std::vector<bool> full;
    for (const auto& word : words) full.push_back(word == "full");
    if (full.size() != static_cast<std::size_t>(num_layers)) {
      reading.remark = fmt::format("fails: {} entries for {} layers", words.size(), num_layers);
      return reading;
    }
    return finish(std::move(reading), full);
  }
  const auto context = json.find("max_position_embeddings");
  const bool long_context = context != json.end() && context->is_number_integer() &&
                            context->get<std::int64_t>() >= kGlm52Context;
  if (architecture == Architecture::kGlmMoeDsa && long_context) {
    reading.pattern = Pattern::every_nth(4, 3, num_layers);
    reading.remark = "no indexer_types and a context of 1M or more: assumes GLM-5.2's schedule";
    return reading;
  }
  return read_none(std::move(reading), json, num_layers);
}

}  // namespace

Pattern read_schedule(const nlohmann::json& json, int num_layers, const std::string& where) {
  const ConfigReader reader(json, where);
  struct Statement {
    std::string key;
    Pattern pattern;
  };
  std::vector<Statement> statements;
  if (reader.find("indexer_types") != nullptr) {
    statements.push_back(
        {"indexer_types", pattern_of_words(reader.texts("indexer_types", num_layers),
                                           reader.at("indexer_types"), false)});
  }
  if (auto pattern = read_pattern_key(reader, num_layers)) {
    statements.push_back({"index_topk_pattern", *pattern});
  }
  // A frequency of 1 is the keys' word for "off": it states nothing against the others.
  const auto frequency = reader.integer("index_topk_freq", 1, 1, INT32_MAX);
  if (frequency > 1) {
    const auto offset = reader.integer("index_skip_topk_offset", kDefaultOffset, 1, INT32_MAX);
    statements.push_back(
        {fmt::format("index_topk_freq {} with offset {}", frequency, offset),
         Pattern::every_nth(static_cast<int>(frequency), static_cast<int>(offset), num_layers)});
  }
  const auto contradiction = [&](const Statement& one, const Statement& other) {
    return input_error("{}: expected one schedule, found two: {} reads {}, {} reads {}", where,
                       one.key, one.pattern.str(), other.key, other.pattern.str());
  };
  for (const auto& statement : statements) {
    if (statement.pattern != statements[0].pattern) throw contradiction(statements[0], statement);
  }
  if (auto sources = read_sources_key(reader, num_layers)) {
    if (!statements.empty() && statements[0].pattern != sources->as_nearest()) {
      throw contradiction({"indexcache_sources", *sources}, statements[0]);
    }
    return *sources;
  }
  return statements.empty() ? Pattern::full(num_layers) : statements[0].pattern;
}

std::vector<ScheduleReading> read_schedule_as_engines_do(const nlohmann::json& json,
                                                         Architecture architecture,
                                                         int num_layers) {
  std::vector<ScheduleReading> readings = {read_as_transformers(json, architecture, num_layers)};
  for (const auto& rule : {kVllm, kSglang, kTensorRt}) {
    readings.push_back(read_as(rule, json, num_layers));
  }
  readings.push_back(read_as_llama_cpp(json, architecture, num_layers));
  for (const auto& rule : {kAtom, kSlime}) readings.push_back(read_as(rule, json, num_layers));
  // The patch knows no offset key.
  auto without_offset = json;
  without_offset.erase("index_skip_topk_offset");
  readings.push_back(read_as(kPaperPatch, without_offset, num_layers));

  if (has(json, "indexcache_sources")) {
    for (auto& reading : readings) {
      reading.remark += reading.remark.empty() ? "" : "; ";
      reading.remark += "does not know indexcache_sources";
    }
  }
  return readings;
}

std::vector<ScheduleReading> read_schedule_as_engines_do(const ModelConfig& config) {
  return read_schedule_as_engines_do(config.json, config.architecture, config.num_layers);
}

void set_schedule(ModelConfig& config, const Pattern& schedule) {
  INDEXCACHE_ASSERT(schedule.num_layers() == config.num_layers);
  for (const char* key : {"indexer_types", "index_topk_pattern", "index_topk_freq",
                          "index_skip_topk_offset", "indexcache_sources"}) {
    config.json.erase(key);
  }
  config.schedule = schedule;
  if (!schedule.is_nearest()) {
    config.json["indexcache_sources"] = schedule.sources();
    return;
  }
  config.json["index_topk_pattern"] = schedule.str();
  if (config.architecture == Architecture::kGlmMoeDsa) {
    auto types = nlohmann::json::array();
    for (int layer = 0; layer < schedule.num_layers(); ++layer) {
      types.push_back(schedule.is_full(layer) ? "full" : "shared");
    }
    config.json["indexer_types"] = types;
  }
}

}  // namespace indexcache
