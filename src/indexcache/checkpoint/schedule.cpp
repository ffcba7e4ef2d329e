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

void set_schedule(ModelConfig& config, const Pattern& schedule, RoutedKeys routed) {
  INDEXCACHE_ASSERT(schedule.num_layers() == config.num_layers);
  for (const char* key : {"indexer_types", "index_topk_pattern", "index_topk_freq",
                          "index_skip_topk_offset", "indexcache_sources"}) {
    config.json.erase(key);
  }
  config.schedule = schedule;
  if (!schedule.is_nearest()) {
    config.json["indexcache_sources"] = schedule.sources();
    if (routed == RoutedKeys::kSourcesAlone) return;
  }
  config.json["index_topk_pattern"] = schedule.as_nearest().str();
  if (config.architecture == Architecture::kGlmMoeDsa) {
    auto types = nlohmann::json::array();
    for (int layer = 0; layer < schedule.num_layers(); ++layer) {
      types.push_back(schedule.is_full(layer) ? "full" : "shared");
    }
    config.json["indexer_types"] = types;
  }
}

}  // namespace indexcache
