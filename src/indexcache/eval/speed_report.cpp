#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/eval/speed.h"
#include "indexcache/eval/text_table.h"

namespace indexcache {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

struct Spread {
  double median = 0, least = 0, largest = 0;
};

Spread spread(std::vector<double> values) {
  INDEXCACHE_ASSERT(!values.empty());
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

Spread speed_up(const std::vector<double>& baseline, const std::vector<double>& seconds) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < seconds.size(); ++i) ratios.push_back(baseline[i] / seconds[i]);
  return spread(std::move(ratios));
}

nlohmann::json to_json(const Spread& s) {
  return {{"median", s.median}, {"min", s.least}, {"max", s.largest}};
}

// One timed phase: seconds, tokens a second (of `tokens` tokens), parts, speed-up.
nlohmann::json phase_json(const std::vector<double>& seconds, std::int64_t tokens,
                          const PartSeconds& parts, const std::vector<double>* baseline) {
  const Spread s = spread(seconds);
  nlohmann::json out = {{"seconds", to_json(s)},
                        {"runs", seconds},
                        {"tokens_per_second", static_cast<double>(tokens) / s.median},
                        {"parts", parts}};
  if (baseline != nullptr) out["speed_up"] = to_json(speed_up(*baseline, seconds));
  return out;
}

using Runs = std::vector<double> SpeedPoint::*;

// A row a context: each pattern's median and range, and its speed-up.
std::string phase_table(const std::vector<PatternSpeed>& patterns, Runs runs, double scale,
                        int digits) {
  std::vector<std::vector<std::string>> rows(1, {"context"});
  for (std::size_t p = 0; p < patterns.size(); ++p) {
    rows[0].push_back(patterns[p].name);
    if (p > 0) rows[0].push_back("speed-up");
  }
  for (std::size_t i = 0; i < patterns[0].points.size(); ++i) {
    auto& row = rows.emplace_back();
    row.push_back(std::to_string(patterns[0].points[i].context));
    for (std::size_t p = 0; p < patterns.size(); ++p) {
      const auto& seconds = patterns[p].points[i].*runs;
      const Spread s = spread(seconds);
      row.push_back(fmt::format("{:.{}f} ({:.{}f}-{:.{}f})", s.median * scale, digits,
                                s.least * scale, digits, s.largest * scale, digits));
      if (p > 0) {
        const Spread ratio = speed_up(patterns[0].points[i].*runs, seconds);
        row.push_back(
            fmt::format("x{:.2f} ({:.2f}-{:.2f})", ratio.median, ratio.least, ratio.largest));
      }
    }
  }
  return text_table(rows);
}

// A row a context and pattern: the seconds of each part.
std::string parts_table(const std::vector<PatternSpeed>& patterns, PartSeconds SpeedPoint::*parts,
                        double scale, int digits) {
  std::set<std::string> names;
  for (const auto& speed : patterns) {
    for (const auto& point : speed.points) {
      for (const auto& [name, seconds] : point.*parts) names.insert(name);
    }
  }
  names.erase("other");
  std::vector<std::string> columns(names.begin(), names.end());
  columns.push_back("other");
  std::vector<std::vector<std::string>> rows(1, {"context", "pattern"});
  rows[0].insert(rows[0].end(), columns.begin(), columns.end());
  for (std::size_t i = 0; i < patterns[0].points.size(); ++i) {
    for (const auto& speed : patterns) {
      const auto& point = speed.points[i];
      auto& row = rows.emplace_back();
      row.push_back(std::to_string(point.context));
      row.push_back(speed.name);
      for (const auto& column : columns) {
        const auto found = (point.*parts).find(column);
        const double seconds = found == (point.*parts).end() ? 0.0 : found->second;
        row.push_back(fmt::format("{:.{}f}", seconds * scale, digits));
      }
    }
  }
  return text_table(rows);
}

}  // namespace

nlohmann::json speed_json(const std::vector<PatternSpeed>& patterns) {
  auto out = nlohmann::json::array();
  for (std::size_t p = 0; p < patterns.size(); ++p) {
    const auto& speed = patterns[p];
    nlohmann::json entry = {{"name", speed.name},
                            {"pattern", speed.pattern.str()},
                            {"num_full", speed.pattern.num_full()}};
    for (std::size_t i = 0; i < speed.points.size(); ++i) {
      const auto& point = speed.points[i];
      const auto& baseline = patterns[0].points[i];
      entry["contexts"].push_back(
          {{"context", point.context},
           {"prefill", phase_json(point.prefill, point.context, point.prefill_parts,
                                  p == 0 ? nullptr : &baseline.prefill)},
           {"decode",
            phase_json(point.decode, 1, point.decode_parts, p == 0 ? nullptr : &baseline.decode)},
           {"cache_bytes",
            {{"latents", point.cache.latents},
             {"index_keys", point.cache.index_keys},
             {"total", point.cache.total()}}}});
    }
    out.push_back(std::move(entry));
  }
  return out;
}

std::string speed_table(const std::vector<PatternSpeed>& patterns) {
  INDEXCACHE_ASSERT(!patterns.empty());
  std::string out = "Patterns (the first is the baseline)\n";
  std::vector<std::vector<std::string>> rows;
  for (const auto& speed : patterns) {
    rows.push_back(
        {speed.name,
         fmt::format("{} of {} Full", speed.pattern.num_full(), speed.pattern.num_layers()),
         speed.pattern.str()});
  }
  out += text_table(rows);
  const std::size_t repeats = patterns[0].points.at(0).prefill.size();
  out += fmt::format("\nPrefill, seconds: median (least-largest) of {} runs in turn\n", repeats);
  out += phase_table(patterns, &SpeedPoint::prefill, 1.0, 2);
  out += "\nPrefill by part, seconds\n" + parts_table(patterns, &SpeedPoint::prefill_parts, 1.0, 2);
  out += "\nDecode, milliseconds a token\n" + phase_table(patterns, &SpeedPoint::decode, 1e3, 2);
  out += "\nDecode by part, milliseconds a token\n" +
         parts_table(patterns, &SpeedPoint::decode_parts, 1e3, 2);

  rows.assign(1, {"context"});
  for (const auto& speed : patterns) rows[0].push_back(speed.name);
  for (std::size_t i = 0; i < patterns[0].points.size(); ++i) {
    auto& row = rows.emplace_back();
    row.push_back(std::to_string(patterns[0].points[i].context));
    for (const auto& speed : patterns) {
      const CacheBytes& cache = speed.points[i].cache;
      row.push_back(fmt::format("{:.1f} + {:.1f}", static_cast<double>(cache.latents) / kMiB,
                                static_cast<double>(cache.index_keys) / kMiB));
    }
  }
  return out + "\nCaches, MiB: latents + index keys\n" + text_table(rows);
}

}  // namespace indexcache
