#include "indexcache/checkpoint/config_reader.h"

#include <cmath>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/strict_json.h"

namespace indexcache {
namespace {

// The value if it is an integer that 64 bits hold.
std::optional<std::int64_t> as_integer(const nlohmann::json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX) return std::nullopt;
  return value.get<std::int64_t>();
}

}  // namespace

const nlohmann::json* ConfigReader::find(const std::string& key) const {
  const auto found = json_->find(key);
  return found == json_->end() || found->is_null() ? nullptr : &*found;
}

std::int64_t ConfigReader::integer(const std::string& key, std::int64_t fallback,
                                   std::int64_t least, std::int64_t most) const {
  const auto* value = find(key);
  const auto number = value != nullptr ? as_integer(*value) : fallback;
  if (!number || *number < least || *number > most) {
    const auto found =
        value != nullptr ? json_excerpt(*value) : fmt::format("none, which means {}", fallback);
    throw expectation_error(at(key), fmt::format("an integer from {} to {}", least, most), found);
  }
  return *number;
}

std::int64_t ConfigReader::aliased_integer(const std::vector<std::string>& keys,
                                           std::int64_t fallback, std::int64_t least,
                                           std::int64_t most) const {
  const std::string* first = nullptr;
  for (const auto& key : keys) {
    if (find(key) == nullptr) continue;
    if (first == nullptr) {
      first = &key;
    } else if (*find(key) != *find(*first)) {
      throw expectation_error(at(key),
                              fmt::format("{} as in {}", json_excerpt(*find(*first)), *first),
                              json_excerpt(*find(key)));
    }
  }
  return integer(first != nullptr ? *first : keys[0], fallback, least, most);
}

double ConfigReader::number(const std::string& key, double fallback) const {
  const auto* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    throw expectation_error(at(key), "a finite number", json_excerpt(*value));
  }
  return value->get<double>();
}

double ConfigReader::positive_number(const std::string& key, double fallback) const {
  const double value = number(key, fallback);
  if (value <= 0) throw expectation_error(at(key), "a positive number", json_excerpt(*find(key)));
  return value;
}

bool ConfigReader::flag(const std::string& key, bool fallback) const {
  const auto* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) throw expectation_error(at(key), "true or false", json_excerpt(*value));
  return value->get<bool>();
}

std::string ConfigReader::text(const std::string& key, const std::string& fallback) const {
  const auto* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) throw expectation_error(at(key), "a string", json_excerpt(*value));
  return value->get<std::string>();
}

std::vector<std::string> ConfigReader::texts(const std::string& key, int count) const {
  const auto* value = find(key);
  if (value == nullptr) return {};
  const auto expected = fmt::format("a list of {} strings, one a layer", count);
  if (!value->is_array()) throw expectation_error(at(key), expected, json_excerpt(*value));
  if (value->size() != static_cast<std::size_t>(count)) {
    throw expectation_error(at(key), expected, fmt::format("{} entries", value->size()));
  }
  std::vector<std::string> list;
  for (const auto& entry : *value) {
    if (!entry.is_string()) throw expectation_error(at(key), expected, json_excerpt(entry));
    list.push_back(entry.get<std::string>());
  }
  return list;
}

std::vector<std::int64_t> ConfigReader::integers(const std::string& key) const {
  const auto* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) {
    throw expectation_error(at(key), "a list of integers", json_excerpt(*value));
  }
  std::vector<std::int64_t> list;
  for (const auto& entry : *value) {
    const auto number = as_integer(entry);
    if (!number) throw expectation_error(at(key), "a list of integers", json_excerpt(*value));
    list.push_back(*number);
  }
  return list;
}

std::optional<ConfigReader> ConfigReader::object(const std::string& key) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) throw expectation_error(at(key), "an object", json_excerpt(*value));
  return ConfigReader(*value, at(key));
}

std::optional<std::int64_t> ConfigReader::token_id(const std::string& key) const {
  if (find(key) == nullptr) return std::nullopt;
  return integer(key, 0, 0, INT32_MAX);
}

std::vector<std::int64_t> ConfigReader::token_ids(const std::string& key) const {
  const auto* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {integer(key, 0, 0, INT32_MAX)};
  const auto ids = integers(key);
  for (const std::int64_t id : ids) {
    if (id < 0 || id > INT32_MAX) {
      throw expectation_error(at(key), "token ids of 0 or more", fmt::format("{}", id));
    }
  }
  return ids;
}

void ConfigReader::require_text(const std::string& key, const std::string& value) const {
  if (const auto found = text(key, value); found != value) {
    throw expectation_error(at(key), fmt::format("\"{}\"", value), quote(found));
  }
}

void ConfigReader::require_integer(const std::string& key, std::int64_t value,
                                   const std::string& reason) const {
  const auto* found = find(key);
  if (found != nullptr && as_integer(*found) != value) {
    throw expectation_error(at(key), fmt::format("{}{}", value, reason), json_excerpt(*found));
  }
}

MergedReader::MergedReader(const ConfigReader& outer, const std::vector<std::string>& keys) {
  for (const auto& key : keys) {
    if (auto reader = outer.object(key)) readers_.push_back(*reader);
  }
  readers_.push_back(outer);
}

const ConfigReader& MergedReader::holder(const std::string& key, std::size_t count) const {
  const ConfigReader* first = nullptr;
  for (std::size_t i = 0; i < count; ++i) {
    const auto* value = readers_[i].find(key);
    if (value == nullptr) continue;
    if (first == nullptr) {
      first = &readers_[i];
    } else if (*value != *first->find(key)) {
      throw input_error("{} is {}, but {} is {}: expected one value", first->at(key),
                        json_excerpt(*first->find(key)), readers_[i].at(key), json_excerpt(*value));
    }
  }
  return first != nullptr ? *first : readers_[0];
}

std::string MergedReader::at(const std::string& key) const {
  return holder(key, readers_.size()).at(key);
}

double MergedReader::number(const std::string& key, double fallback) const {
  if (readers_.size() == 1) return fallback;
  return holder(key, readers_.size() - 1).number(key, fallback);
}

double MergedReader::number_here_or_above(const std::string& key, double fallback) const {
  return holder(key, readers_.size()).number(key, fallback);
}

bool MergedReader::flag(const std::string& key, bool fallback) const {
  if (readers_.size() == 1) return fallback;
  return holder(key, readers_.size() - 1).flag(key, fallback);
}

std::string MergedReader::text(const std::vector<std::string>& keys,
                               const std::string& fallback) const {
  if (readers_.size() == 1) return fallback;
  for (const auto& key : keys) {
    const auto& reader = holder(key, readers_.size() - 1);
    if (reader.find(key) != nullptr) return reader.text(key, fallback);
  }
  return fallback;
}

}  // namespace indexcache
