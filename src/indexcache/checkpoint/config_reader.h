// Typed reading of a JSON object's keys: each wrong value is an error that names file and key.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace indexcache {

// One object. Absent and null are the same: the default. Refers to `json`, which must outlive it.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& json, std::string where)
      : json_(&json), where_(std::move(where)) {}

  std::string at(const std::string& key) const { return where_ + ": " + key; }
  // nullptr if absent or null.
  const nlohmann::json* find(const std::string& key) const;

  // In [least, most].
  std::int64_t integer(const std::string& key, std::int64_t fallback, std::int64_t least,
                       std::int64_t most) const;
  // The same number under several names; names that disagree are an error.
  std::int64_t aliased_integer(const std::vector<std::string>& keys, std::int64_t fallback,
                               std::int64_t least, std::int64_t most) const;
  double number(const std::string& key, double fallback) const;  // finite
  double positive_number(const std::string& key, double fallback) const;
  bool flag(const std::string& key, bool fallback) const;
  std::string text(const std::string& key, const std::string& fallback) const;
  // A list of `count` strings; empty if absent.
  std::vector<std::string> texts(const std::string& key, int count) const;
  // A list of integers; empty if absent.
  std::vector<std::int64_t> integers(const std::string& key) const;
  std::optional<ConfigReader> object(const std::string& key) const;

  std::optional<std::int64_t> token_id(const std::string& key) const;
  std::vector<std::int64_t> token_ids(const std::string& key) const;  // one id, or a list

  // If the key is there, it must have this value.
  void require_text(const std::string& key, const std::string& value) const;
  void require_integer(const std::string& key, std::int64_t value,
                       const std::string& reason = "") const;

 private:
  const nlohmann::json* json_;
  std::string where_;
};

// Several sub-objects of one object that state the same things: a key may stand in any of them, but
// must not stand in two with different values.
class MergedReader {
 public:
  MergedReader(const ConfigReader& outer, const std::vector<std::string>& keys);

  std::string at(const std::string& key) const;
  double number(const std::string& key, double fallback) const;
  // Also in the outer object itself.
  double number_here_or_above(const std::string& key, double fallback) const;
  bool flag(const std::string& key, bool fallback) const;
  // The first of these keys that is there.
  std::string text(const std::vector<std::string>& keys, const std::string& fallback) const;

 private:
  // The reader that holds `key`, the first one if none does.
  const ConfigReader& holder(const std::string& key, std::size_t count) const;

  std::vector<ConfigReader> readers_;  // the outer object last
};

}  // namespace indexcache
