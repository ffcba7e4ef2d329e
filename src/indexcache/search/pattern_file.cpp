#include "indexcache/search/pattern_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"

namespace indexcache {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr std::string_view kPatternFileFormat = "indexcache pattern file";
constexpr int kVersion = 1;
// Far above any model; keeps hostile files from asking for memory.
constexpr std::size_t kMaxLayers = 4096;

// What a JSON value is, for errors: short values as they stand.
std::string describe(const Json& value) {
  if (value.is_object() || value.is_array()) {
    return fmt::format("{} of {}", value.type_name(), value.size());
  }
  auto text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// One object of the file, and where it stands.
class Entry {
 public:
  Entry(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw expectation_error(where_, "an object", describe(object));
  }

  const Json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) throw expectation_error(path(key), "a value", "none");
    return *found;
  }
  Entry object(const char* key) const { return Entry(at(key), path(key)); }
  bool has(const char* key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
  }

  std::string text(const char* key) const {
    const Json& value = at(key);
    if (!value.is_string()) throw expectation_error(path(key), "a string", describe(value));
    return value.get<std::string>();
  }
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const {
    return integer_of(at(key), path(key), low, high);
  }
  std::uint64_t unsigned_integer(const char* key) const {
    const Json& value = at(key);
    if (!value.is_number_unsigned()) {
      throw expectation_error(path(key), "an integer of 0 or more", describe(value));
    }
    return value.get<std::uint64_t>();
  }
  double number(const char* key) const {
    const Json& value = at(key);
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      throw expectation_error(path(key), "a finite number", describe(value));
    }
    return value.get<double>();
  }
  Pattern pattern(const char* key, int num_layers) const {
    const Json& value = at(key);
    if (!value.is_array() || static_cast<int>(value.size()) != num_layers) {
      throw expectation_error(path(key), fmt::format("a source for each of {} layers", num_layers),
                              describe(value));
    }
    std::vector<int> sources;
    for (std::size_t layer = 0; layer < value.size(); ++layer) {
      sources.push_back(static_cast<int>(
          integer_of(value[layer], fmt::format("{}[{}]", path(key), layer), -1, num_layers - 1)));
    }
    try {
      return Pattern::from_sources(std::move(sources));
    } catch (const InputError& error) {
      throw input_error("{}: {}", path(key), error.what());
    }
  }

  std::string path(const char* key) const { return fmt::format("{}: {}", where_, key); }

 private:
  static std::int64_t integer_of(const Json& value, const std::string& path, std::int64_t low,
                                 std::int64_t high) {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<std::uint64_t>() >
                            static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!fits || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
      throw expectation_error(path, fmt::format("an integer from {} to {}", low, high),
                              describe(value));
    }
    return value.get<std::int64_t>();
  }

  const Json& object_;
  std::string where_;
};

SearchSetup parse_setup(const Entry& file) {
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  constexpr auto kMaxInt = std::numeric_limits<int>::max();
  SearchSetup setup;
  const Entry model = file.object("model");
  setup.model_sha256 = model.text("sha256");
  setup.num_layers = static_cast<int>(model.integer("num_layers", 1, kMaxLayers));
  if (model.has("latent_norm_eps")) setup.latent_norm_eps = model.number("latent_norm_eps");
  const Entry calibration = file.object("calibration");
  setup.text_sha256 = calibration.text("sha256");
  setup.context = calibration.integer("context", 1, kMax);
  setup.num_sequences = static_cast<int>(calibration.integer("sequences", 1, kMaxInt));
  setup.seed = calibration.unsigned_integer("seed");
  setup.retrieval_share = calibration.number("tasks");
  setup.index_key_dtype = file.text("index_key_dtype");
  setup.device = file.text("device");
  setup.carried_bytes = file.integer("carried_bytes", 0, kMax);
  try {
    setup.strategy = parse_strategy(file.text("strategy"));
  } catch (const InputError& error) {
    throw input_error("{}: {}", file.path("strategy"), error.what());
  }
  if (file.has("blocks")) {
    setup.num_blocks = static_cast<int>(file.integer("blocks", 1, setup.num_layers));
  }
  if (file.has("keep")) setup.keep = static_cast<int>(file.integer("keep", 1, setup.num_layers));
  setup.start = file.object("start").pattern("sources", setup.num_layers);
  return setup;
}

}  // namespace

double paired_standard_error(const Losses& a, const Losses& b) {
  INDEXCACHE_ASSERT(a.per_sequence.size() == b.per_sequence.size());
  const auto n = static_cast<double>(a.per_sequence.size());
  if (n < 2) return 0;
  const double mean = a.mean() - b.mean();
  double squares = 0;
  for (std::size_t i = 0; i < a.per_sequence.size(); ++i) {
    const double deviation = a.per_sequence[i] - b.per_sequence[i] - mean;
    squares += deviation * deviation;
  }
  return std::sqrt(squares / (n - 1) / n);
}

PatternFile make_pattern_file(const SearchSetup& setup, const SearchResult& result,
                              std::int64_t layer_runs, std::optional<std::int64_t> attention_runs) {
  PatternFile file;
  file.setup = setup;
  file.start_loss = result.start.mean();
  file.evaluations = result.evaluations;
  file.layer_runs = layer_runs;
  file.attention_runs = attention_runs;
  for (const BudgetResult& budget : result.budgets) {
    const double loss = budget.losses.mean();
    file.budgets.push_back({budget.num_full, budget.pattern, loss, loss - file.start_loss,
                            paired_standard_error(budget.losses, result.start)});
  }
  return file;
}

double PatternFile::layer_run_share() const {
  return static_cast<double>(layer_runs) /
         (static_cast<double>(evaluations + 1) * setup.num_layers);
}

const Pattern& PatternFile::at(std::optional<std::string_view> keep,
                               const std::string& where) const {
  std::optional<int> count;
  if (keep) {
    try {
      count = parse_keep(*keep, setup.num_layers);
    } catch (const InputError& error) {
      throw input_error("{}: {}", where, error.what());
    }
  } else if (setup.keep) {
    count = setup.keep;
  } else if (budgets.size() == 1) {
    count = budgets.front().num_full;
  }
  std::vector<int> counts;
  for (const PatternBudget& budget : budgets) {
    if (budget.num_full == count) return budget.pattern;
    counts.push_back(budget.num_full);
  }
  if (count && setup.start.num_full() == *count) return setup.start;
  throw expectation_error(
      where, fmt::format("a budget of {} Full layers (FILE:KEEP)", fmt::join(counts, ", ")),
      count ? fmt::format("{}", *count) : "no KEEP");
}

OrderedJson to_json(const SearchSetup& setup) {
  OrderedJson json;
  json["model"] = {{"sha256", setup.model_sha256}, {"num_layers", setup.num_layers}};
  if (setup.latent_norm_eps) json["model"]["latent_norm_eps"] = *setup.latent_norm_eps;
  json["calibration"] = {{"sha256", setup.text_sha256},
                         {"context", setup.context},
                         {"sequences", setup.num_sequences},
                         {"seed", setup.seed},
                         {"tasks", setup.retrieval_share}};
  json["index_key_dtype"] = setup.index_key_dtype;
  json["device"] = setup.device;
  json["carried_bytes"] = setup.carried_bytes;
  json["strategy"] = strategy_name(setup.strategy);
  if (setup.num_blocks) json["blocks"] = *setup.num_blocks;
  if (setup.keep) json["keep"] = *setup.keep;
  json["start"] = {{"count", setup.start.num_full()},
                   {"pattern", setup.start.str()},
                   {"sources", setup.start.sources()}};
  return json;
}

OrderedJson to_json(const PatternFile& file) {
  OrderedJson json = {{"format", kPatternFileFormat}, {"version", kVersion}};
  json.update(to_json(file.setup));
  json["start"]["loss"] = file.start_loss;
  json["evaluations"] = file.evaluations;
  json["layer_runs"] = file.layer_runs;
  if (file.attention_runs) json["attention_runs"] = *file.attention_runs;
  json["layer_run_share"] = file.layer_run_share();
  json["budgets"] = OrderedJson::array();
  for (const PatternBudget& budget : file.budgets) {
    json["budgets"].push_back({{"count", budget.num_full},
                               {"pattern", budget.pattern.str()},
                               {"sources", budget.pattern.sources()},
                               {"loss", budget.loss},
                               {"difference", budget.difference},
                               {"standard_error", budget.standard_error}});
  }
  return json;
}

PatternFile parse_pattern_file(std::string_view text, const std::string& where) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw expectation_error(where, "a pattern file (JSON)",
                            fmt::format("malformed JSON at byte {}", error.byte));
  } catch (const Json::exception&) {
    throw expectation_error(where, "a pattern file (JSON)", "a number beyond any range");
  }
  const Entry entry(json, where);
  if (!entry.has("format") || entry.at("format") != kPatternFileFormat) {
    throw expectation_error(entry.path("format"), fmt::format("\"{}\"", kPatternFileFormat),
                            entry.has("format") ? describe(entry.at("format")) : "none");
  }
  const auto version = entry.at("version");
  if (version != kVersion) {
    throw expectation_error(entry.path("version"), fmt::format("{}", kVersion), describe(version));
  }
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  PatternFile file;
  file.setup = parse_setup(entry);
  file.start_loss = entry.object("start").number("loss");
  file.evaluations = entry.integer("evaluations", 0, kMax - 1);
  file.layer_runs = entry.integer("layer_runs", 0, kMax);
  if (entry.has("attention_runs")) {
    file.attention_runs = entry.integer("attention_runs", 0, kMax);
  }
  const Json& budgets = entry.at("budgets");
  if (!budgets.is_array() || budgets.size() > kMaxLayers) {
    throw expectation_error(entry.path("budgets"), "a list with one entry a budget",
                            describe(budgets));
  }
  for (std::size_t i = 0; i < budgets.size(); ++i) {
    const Entry item(budgets[i], fmt::format("{}: budgets[{}]", where, i));
    PatternBudget budget;
    budget.pattern = item.pattern("sources", file.setup.num_layers);
    budget.num_full = budget.pattern.num_full();
    if (item.integer("count", 1, file.setup.num_layers) != budget.num_full) {
      throw expectation_error(item.path("count"),
                              fmt::format("{}, the Full layers of its sources", budget.num_full),
                              describe(item.at("count")));
    }
    if (!file.budgets.empty() && budget.num_full >= file.budgets.back().num_full) {
      throw expectation_error(item.path("count"), "less than the budget before it",
                              fmt::format("{}", budget.num_full));
    }
    budget.loss = item.number("loss");
    budget.difference = item.number("difference");
    budget.standard_error = item.number("standard_error");
    file.budgets.push_back(std::move(budget));
  }
  return file;
}

PatternFile load_pattern_file(const std::filesystem::path& path, int num_layers) {
  PatternFile file = parse_pattern_file(read_file(path), path.string());
  if (file.setup.num_layers != num_layers) {
    throw expectation_error(path.string(), fmt::format("a pattern for {} layers", num_layers),
                            fmt::format("{}", file.setup.num_layers));
  }
  return file;
}

Pattern read_pattern_file(const std::filesystem::path& path, std::optional<std::string_view> keep,
                          int num_layers) {
  return load_pattern_file(path, num_layers).at(keep, path.string());
}

Agreement compare_budgets(const PatternFile& a, const PatternFile& b) {
  Agreement agreement;
  for (const PatternBudget& budget : a.budgets) {
    const auto other = std::ranges::find(b.budgets, budget.num_full, &PatternBudget::num_full);
    if (other == b.budgets.end()) continue;
    ++agreement.both;
    if (other->pattern == budget.pattern) {
      ++agreement.same;
    } else {
      agreement.different.push_back(budget.num_full);
    }
  }
  return agreement;
}

}  // namespace indexcache
