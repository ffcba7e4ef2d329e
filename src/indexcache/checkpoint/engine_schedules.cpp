// How engines and training stacks read config.json's schedule, spec section 3.1: each one's keys,
// their precedence, its formula, its mistakes.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "indexcache/checkpoint/config.h"

namespace indexcache {
namespace {

struct EngineRule {
  const char* reader;
  bool reads_types, reads_pattern;
  int default_offset;
  // Its formula is max(layer - offset + shift, 0) mod freq = 0.
  int shift;
};

// Spec section 3.1; precedence is indexer_types, index_topk_pattern, index_topk_freq. A pattern
// may be shorter than the model: layers beyond it are Full.
// SGLang's and TensorRT-LLM's follow vLLM's; what they do beyond a pattern's end was not read.
constexpr EngineRule kVllm = {"vLLM", false, true, 2, 1};
constexpr EngineRule kSglang = {"SGLang", false, true, 2, 1};
constexpr EngineRule kTensorRt = {"TensorRT-LLM", false, true, 2, 1};
constexpr EngineRule kPaperPatch = {"the paper's patch", false, true, 1, 0};
constexpr EngineRule kAtom = {"ATOM", true, true, 1, 0};
constexpr EngineRule kSlime = {"slime", false, false, 0, 1};

bool has(const nlohmann::json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && !found->is_null();
}

void add_remark(ScheduleReading& reading, const std::string& remark) {
  reading.remark += (reading.remark.empty() ? "" : "; ") + remark;
}

ScheduleReading failing(ScheduleReading reading, const std::string& why) {
  reading.remark = "fails: " + why;
  return reading;
}

ScheduleReading with_full_layers(ScheduleReading reading, const std::vector<bool>& full) {
  if (!full[0]) {
    reading.remark = "makes layer 0 Shared, which has nothing to reuse";
    return reading;
  }
  std::vector<int> full_layers;
  for (int layer = 0; layer < static_cast<int>(full.size()); ++layer) {
    if (full[layer]) full_layers.push_back(layer);
  }
  reading.pattern = Pattern::nearest(full_layers, static_cast<int>(full.size()));
  return reading;
}

// The letters of a string or the entries of a list, as Python's indexing gives them; an entry that
// is no string equals no word.
std::vector<std::string> words_of(const nlohmann::json& value) {
  std::vector<std::string> words;
  if (value.is_string()) {
    for (const char letter : value.get_ref<const std::string&>()) words.emplace_back(1, letter);
  }
  if (value.is_array()) {
    for (const auto& entry : value) words.push_back(entry.is_string() ? entry : "");
  }
  return words;
}

// Full where a word is not `shared`; layers without a word are Full.
ScheduleReading read_words(ScheduleReading reading, const nlohmann::json& value,
                           const std::string& shared, int num_layers) {
  if (!value.is_string() && !value.is_array()) {
    return failing(std::move(reading), reading.key + " is no string or list");
  }
  const auto words = words_of(value);
  std::vector<bool> full(num_layers, true);
  for (std::size_t layer = 0; layer < words.size() && layer < full.size(); ++layer) {
    full[layer] = words[layer] != shared;
  }
  if (words.size() < full.size()) {
    reading.remark = fmt::format("takes the layers past its {} entries as Full", words.size());
  } else if (words.size() > full.size()) {
    reading.remark = fmt::format("ignores the entries past layer {}", num_layers - 1);
  }
  return with_full_layers(std::move(reading), full);
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
      return failing(std::move(reading), fmt::format("{} is no integer", key));
    }
    // Larger numbers mean the same as these bounds for any number of layers.
    *target = std::clamp<std::int64_t>(found->get<std::int64_t>(), -1'000'000, 1'000'000);
  }
  if (frequency < 1) return failing(std::move(reading), "index_topk_freq is not positive");
  std::vector<bool> full(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    full[layer] = std::max<std::int64_t>(layer - offset + shift, 0) % frequency == 0;
  }
  return with_full_layers(std::move(reading), full);
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
    return read_words(std::move(reading), json["indexer_types"], "shared", num_layers);
  }
  if (rule.reads_pattern && has(json, "index_topk_pattern")) {
    reading.key = "index_topk_pattern";
    return read_words(std::move(reading), json["index_topk_pattern"], "S", num_layers);
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
  for (const char* key : {"indexer_types", "index_topk_pattern"}) {
    if (!has(json, key)) continue;
    reading.key = key;
    const auto& value = json[key];
    const auto entries = words_of(value).size();
    if (entries < static_cast<std::size_t>(num_layers)) {
      return failing(std::move(reading),
                     fmt::format("{} entries for {} layers", entries, num_layers));
    }
    // A list is taken for indexer_types as it is: the letter S in it is not "shared".
    return read_words(std::move(reading), value, value.is_string() ? "S" : "shared", num_layers);
  }
  if (json.contains("index_topk_freq")) {
    reading.key = "index_topk_freq";
    if (json["index_topk_freq"].is_null()) {
      return failing(std::move(reading), "index_topk_freq is null");
    }
    auto clamped = json;
    if (json["index_topk_freq"].is_number_integer()) {
      clamped["index_topk_freq"] =
          std::max(json["index_topk_freq"].get<std::int64_t>(), std::int64_t{1});
    }
    return read_frequency(std::move(reading), clamped, 2, 1, num_layers);
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
    const auto words = words_of(json["indexer_types"]);
    if (words.size() != static_cast<std::size_t>(num_layers)) {
      return failing(std::move(reading),
                     fmt::format("{} entries for {} layers", words.size(), num_layers));
    }
    std::vector<bool> full;
    for (const auto& word : words) full.push_back(word == "full");
    return with_full_layers(std::move(reading), full);
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

std::vector<ScheduleReading> read_schedule_as_engines_do(const nlohmann::json& json,
                                                         Architecture architecture,
                                                         int num_layers) {
  std::vector<ScheduleReading> readings = {read_as_transformers(json, architecture, num_layers)};
  readings.push_back(read_as(kVllm, json, num_layers));
  if (!readings.back().key.empty() && json.value("use_index_cache", nlohmann::json()) != true) {
    add_remark(readings.back(), "older releases also need use_index_cache true");
  }
  for (const auto& rule : {kSglang, kTensorRt}) readings.push_back(read_as(rule, json, num_layers));
  readings.push_back(read_as_llama_cpp(json, architecture, num_layers));
  for (const auto& rule : {kAtom, kSlime}) readings.push_back(read_as(rule, json, num_layers));
  // The patch knows no offset key.
  auto without_offset = json;
  without_offset.erase("index_skip_topk_offset");
  readings.push_back(read_as(kPaperPatch, without_offset, num_layers));

  if (has(json, "indexcache_sources")) {
    for (auto& reading : readings) add_remark(reading, "does not know indexcache_sources");
  }
  return readings;
}

std::vector<ScheduleReading> read_schedule_as_engines_do(const ModelConfig& config) {
  return read_schedule_as_engines_do(config.json, config.architecture, config.num_layers);
}

std::vector<ScheduleFlag> schedule_flags(const ModelConfig& config) {
  if (!config.schedule.is_nearest()) return {};
  // Some versions want both keys.
  const nlohmann::ordered_json keys = {{"use_index_cache", true},
                                       {"index_topk_pattern", config.schedule.str()}};
  return {{kVllm.reader, "--hf-overrides", keys},
          {kSglang.reader, "--json-model-override-args", keys}};
}

}  // namespace indexcache
