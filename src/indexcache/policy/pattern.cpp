#include "indexcache/policy/pattern.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

std::optional<int> parse_int(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

int require_int(std::string_view pattern, std::string_view field, std::string_view what) {
  const auto value = parse_int(field);
  if (!value) {
    throw expectation_error(fmt::format("pattern {}", quote(pattern)), what, quote(field));
  }
  return *value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> fields;
  while (true) {
    const auto end = text.find(separator);
    fields.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return fields;
    text.remove_prefix(end + 1);
  }
}

// Sources of the nearest pattern with these Full layers.
std::vector<int> nearest_sources(const std::vector<bool>& is_full) {
  std::vector<int> sources(is_full.size());
  int nearest = Pattern::kFull;
  for (std::size_t layer = 0; layer < is_full.size(); ++layer) {
    sources[layer] = is_full[layer] ? Pattern::kFull : nearest;
    if (is_full[layer]) nearest = static_cast<int>(layer);
  }
  return sources;
}

void check_num_layers(int num_layers) {
  if (num_layers < 1) {
    throw expectation_error("pattern", "at least one layer", fmt::format("{}", num_layers));
  }
}

}  // namespace

Pattern Pattern::full(int num_layers) {
  check_num_layers(num_layers);
  return Pattern(std::vector<int>(num_layers, kFull));
}

Pattern Pattern::uniform(int n, int num_layers) {
  check_num_layers(num_layers);
  if (n < 1) throw expectation_error("pattern uniform:1/n", "n of 1 or more", fmt::format("{}", n));
  std::vector<bool> is_full(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) is_full[layer] = layer % n == 0;
  return Pattern(nearest_sources(is_full));
}

Pattern Pattern::every_nth(int n, int offset, int num_layers) {
  check_num_layers(num_layers);
  if (n < 1) throw expectation_error("pattern freq:n", "n of 1 or more", fmt::format("{}", n));
  if (offset < 1) {
    throw expectation_error("pattern freq:n:offset",
                            "an offset of 1 or more (else layer 0 is not Full)",
                            fmt::format("{}", offset));
  }
  std::vector<bool> is_full(num_layers);
  for (int layer = 0; layer < num_layers; ++layer) {
    is_full[layer] = std::max(layer - offset + 1, 0) % n == 0;
  }
  return Pattern(nearest_sources(is_full));
}

Pattern Pattern::nearest(const std::vector<int>& full_layers, int num_layers) {
  check_num_layers(num_layers);
  std::vector<bool> is_full(num_layers);
  for (const int layer : full_layers) {
    if (layer < 0 || layer >= num_layers) {
      throw expectation_error("pattern: Full layer", fmt::format("a layer in [0, {})", num_layers),
                              fmt::format("{}", layer));
    }
    is_full[layer] = true;
  }
  if (!is_full[0]) throw expectation_error("pattern: layer 0", "Full", "Shared");
  return Pattern(nearest_sources(is_full));
}

Pattern Pattern::from_sources(std::vector<int> sources) {
  check_num_layers(static_cast<int>(sources.size()));
  for (int layer = 0; layer < static_cast<int>(sources.size()); ++layer) {
    const int source = sources[layer];
    if (source == kFull) continue;
    const auto where = fmt::format("pattern: source of layer {}", layer);
    if (layer == 0)
      throw expectation_error(where, "-1 (layer 0 is Full)", fmt::format("{}", source));
    if (source < 0 || source >= layer) {
      throw expectation_error(where, "-1 or an earlier Full layer", fmt::format("{}", source));
    }
    if (sources[source] != kFull) {
      throw expectation_error(where, "an earlier Full layer",
                              fmt::format("layer {}, which is Shared", source));
    }
  }
  return Pattern(std::move(sources));
}

Pattern Pattern::parse(std::string_view text, int num_layers) {
  check_num_layers(num_layers);
  const auto where = fmt::format("pattern {}", quote(text));
  if (text == "full") return full(num_layers);
  if (text.starts_with("uniform:")) {
    const auto fraction = text.substr(8);
    if (!fraction.starts_with("1/")) {
      throw expectation_error(where, "uniform:1/n", quote(text));
    }
    return uniform(require_int(text, fraction.substr(2), "a number after uniform:1/"), num_layers);
  }
  if (text.starts_with("freq:")) {
    const auto fields = split(text.substr(5), ':');
    if (fields.size() > 2) {
      throw expectation_error(where, "freq:n or freq:n:offset",
                              fmt::format("{} fields", fields.size()));
    }
    const int n = require_int(text, fields[0], "a number after freq:");
    const int offset = fields.size() == 2 ? require_int(text, fields[1], "a number as offset") : 2;
    return every_nth(n, offset, num_layers);
  }

  std::vector<int> sources;
  if (!text.empty() && text.find_first_not_of("FS") == std::string_view::npos) {
    std::vector<bool> is_full;
    for (const char role : text) is_full.push_back(role == 'F');
    if (!is_full[0]) throw expectation_error(where + ": layer 0", "F", "S");
    sources = nearest_sources(is_full);
  } else {
    for (const auto field : split(text, ',')) {
      sources.push_back(
          require_int(text, field,
                      "full, uniform:1/n, freq:n[:offset], a string of F and S, or a source list"));
    }
  }
  if (static_cast<int>(sources.size()) != num_layers) {
    throw expectation_error(where, fmt::format("{} layers", num_layers),
                            fmt::format("{}", sources.size()));
  }
  return from_sources(std::move(sources));
}

bool Pattern::is_nearest() const { return *this == as_nearest(); }

std::vector<int> Pattern::full_layers() const {
  std::vector<int> layers;
  for (int layer = 0; layer < num_layers(); ++layer) {
    if (is_full(layer)) layers.push_back(layer);
  }
  return layers;
}

int Pattern::num_full() const {
  return static_cast<int>(std::count(sources_.begin(), sources_.end(), kFull));
}

std::vector<int> Pattern::readers(int layer) const {
  if (!is_full(layer)) return {};
  std::vector<int> layers = {layer};
  for (int reader = layer + 1; reader < num_layers(); ++reader) {
    if (sources_[reader] == layer) layers.push_back(reader);
  }
  return layers;
}

int Pattern::last_reader(int layer) const {
  INDEXCACHE_ASSERT(is_full(layer));
  return readers(layer).back();
}

Pattern Pattern::with_shared(int layer, int source) const {
  INDEXCACHE_ASSERT(source != kFull);
  std::vector<int> sources = sources_;
  sources.at(layer) = source;
  for (int reader = layer + 1; reader < num_layers(); ++reader) {
    if (sources[reader] == layer) sources[reader] = source;
  }
  return from_sources(std::move(sources));
}

Pattern Pattern::with_source(int layer, int source) const {
  INDEXCACHE_ASSERT(!is_full(layer) && source != kFull);
  std::vector<int> sources = sources_;
  sources[layer] = source;
  return from_sources(std::move(sources));
}

Pattern Pattern::as_nearest() const {
  std::vector<bool> is_full_layer(sources_.size());
  for (int layer = 0; layer < num_layers(); ++layer) is_full_layer[layer] = is_full(layer);
  return Pattern(nearest_sources(is_full_layer));
}

std::string Pattern::str() const {
  if (is_nearest()) {
    std::string text;
    for (const int source : sources_) text += source == kFull ? 'F' : 'S';
    return text;
  }
  return fmt::format("{}", fmt::join(sources_, ","));
}

int parse_keep(std::string_view text, int num_layers) {
  int count = 0;
  if (const auto slash = text.find('/'); slash != std::string_view::npos) {
    const auto a = parse_int(text.substr(0, slash));
    const auto b = parse_int(text.substr(slash + 1));
    if (!a || !b || *a < 1 || *b < 1) {
      throw expectation_error("keep", "a count or a fraction a/b", quote(text));
    }
    const std::int64_t layers = (std::int64_t{num_layers} * *a + *b - 1) / *b;
    count = static_cast<int>(std::min<std::int64_t>(layers, num_layers + 1));
  } else {
    const auto value = parse_int(text);
    if (!value) throw expectation_error("keep", "a count or a fraction a/b", quote(text));
    count = *value;
  }
  if (count < 1 || count > num_layers) {
    throw expectation_error("keep", fmt::format("1 to {} Full layers", num_layers), quote(text));
  }
  return count;
}

void require_indexers(const Pattern& pattern, const std::function<bool(int layer)>& has_indexer) {
  std::vector<int> missing;
  for (const int layer : pattern.full_layers()) {
    if (!has_indexer(layer)) missing.push_back(layer);
  }
  if (missing.empty()) return;
  throw expectation_error("pattern " + pattern.str(), "indexer weights in every Full layer",
                          fmt::format("none in layers {}", fmt::join(missing, ", ")));
}

}  // namespace indexcache
