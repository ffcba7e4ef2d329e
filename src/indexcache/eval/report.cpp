#include "indexcache/eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "indexcache/base/error.h"
#include "indexcache/eval/estimate.h"
#include "indexcache/eval/text_table.h"

namespace indexcache {
namespace {

// One measured quantity of every pattern: amounts and weights an item.
struct Quantity {
  std::vector<std::vector<double>> amounts;  // [patterns][items]
  std::vector<double> weights;               // [items]

  bool empty() const { return weights.empty(); }
  Estimate value(std::size_t pattern) const { return ratio(amounts[pattern], weights); }
  Estimate difference(std::size_t pattern) const {
    return ratio_difference(amounts[pattern], amounts[0], weights);
  }
};

enum class Weight { kTokens, kBytes };

// Loss (a token) or bits (a byte) of the windows of one domain; of all if `domain` is null.
Quantity language(const EvalInputs& inputs, const std::vector<NamedScores>& patterns, Weight weight,
                  const std::string* domain = nullptr) {
  Quantity quantity;
  quantity.amounts.resize(patterns.size());
  std::vector<std::vector<double>> nll;
  for (const auto& pattern : patterns) nll.push_back(pattern.scores.window_nll());
  for (std::size_t i = 0; i < inputs.windows.size(); ++i) {
    const auto& window = inputs.windows[i];
    if (domain != nullptr && window.domain != *domain) continue;
    quantity.weights.push_back(weight == Weight::kBytes
                                   ? static_cast<double>(window.bytes) * std::numbers::ln2
                                   : static_cast<double>(window.tokens.size() - 1));
    for (std::size_t p = 0; p < patterns.size(); ++p) quantity.amounts[p].push_back(nll[p][i]);
  }
  return quantity;
}

Quantity loss_in_bucket(const EvalInputs& inputs, const std::vector<NamedScores>& patterns,
                        std::size_t bucket) {
  Quantity quantity;
  quantity.amounts.resize(patterns.size());
  for (std::size_t i = 0; i < inputs.windows.size(); ++i) {
    const auto buckets =
        position_buckets(static_cast<std::int64_t>(inputs.windows[i].tokens.size()) - 1);
    if (bucket >= buckets.size()) continue;
    quantity.weights.push_back(static_cast<double>(buckets[bucket].end - buckets[bucket].begin));
    for (std::size_t p = 0; p < patterns.size(); ++p) {
      quantity.amounts[p].push_back(patterns[p].scores.bucket_nll[i][bucket]);
    }
  }
  return quantity;
}

Quantity task(const std::vector<NamedScores>& patterns, std::size_t set,
              double PromptScore::*figure) {
  Quantity quantity;
  for (const auto& pattern : patterns) {
    auto& amounts = quantity.amounts.emplace_back();
    for (const auto& score : pattern.scores.tasks[set]) amounts.push_back(score.*figure);
    quantity.weights.assign(amounts.size(), 1.0);
  }
  return quantity;
}

std::vector<std::string> domains(const EvalInputs& inputs) {
  std::vector<std::string> names;
  for (const auto& window : inputs.windows) names.push_back(window.domain);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::vector<PositionBucket> buckets_of(const EvalInputs& inputs) {
  std::size_t longest = 1;
  for (const auto& window : inputs.windows) longest = std::max(longest, window.tokens.size());
  return position_buckets(static_cast<std::int64_t>(longest) - 1);
}

nlohmann::json to_json(const Estimate& estimate) {
  return {{"value", estimate.value},
          {"standard_error", std::isnan(estimate.standard_error)
                                 ? nlohmann::json()
                                 : nlohmann::json(estimate.standard_error)}};
}

void put(nlohmann::json& object, const std::string& key, const Quantity& quantity,
         std::size_t pattern) {
  object[key] = to_json(quantity.value(pattern));
  if (pattern > 0) object[key + "_difference"] = to_json(quantity.difference(pattern));
}

nlohmann::json language_json(const EvalInputs& inputs, const std::vector<NamedScores>& patterns,
                             std::size_t p) {
  nlohmann::json out;
  put(out, "loss", language(inputs, patterns, Weight::kTokens), p);
  put(out, "bits_per_byte", language(inputs, patterns, Weight::kBytes), p);
  const auto buckets = buckets_of(inputs);
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    nlohmann::json entry = {{"begin", buckets[b].begin}, {"end", buckets[b].end}};
    put(entry, "loss", loss_in_bucket(inputs, patterns, b), p);
    out["by_position"].push_back(std::move(entry));
  }
  for (const auto& domain : domains(inputs)) {
    nlohmann::json entry = {{"domain", domain}};
    const Quantity bits = language(inputs, patterns, Weight::kBytes, &domain);
    entry["windows"] = bits.weights.size();
    put(entry, "bits_per_byte", bits, p);
    out["by_domain"].push_back(std::move(entry));
  }
  return out;
}

// "1.234 +-.012"; without an error where there is none.
std::string estimate_text(const Estimate& estimate, int digits, bool sign, double scale = 1.0) {
  std::string text = sign ? fmt::format("{:+.{}f}", estimate.value * scale, digits)
                          : fmt::format("{:.{}f}", estimate.value * scale, digits);
  if (!std::isnan(estimate.standard_error)) {
    text += fmt::format(" +-{:.{}f}", estimate.standard_error * scale, digits);
  }
  return text;
}

// One row a quantity: the baseline's value, the other patterns' differences.
std::string comparison(const std::string& first_heading, const std::vector<NamedScores>& patterns,
                       const std::vector<std::pair<std::string, Quantity>>& quantities, int digits,
                       double scale = 1.0) {
  std::vector<std::vector<std::string>> rows(1);
  rows[0].push_back(first_heading);
  for (const auto& pattern : patterns) rows[0].push_back(pattern.name);
  for (const auto& [name, quantity] : quantities) {
    auto& row = rows.emplace_back();
    row.push_back(name);
    row.push_back(estimate_text(quantity.value(0), digits, false, scale));
    for (std::size_t p = 1; p < patterns.size(); ++p) {
      row.push_back(estimate_text(quantity.difference(p), digits, true, scale));
    }
  }
  return text_table(rows);
}

std::int64_t scored_tokens(const EvalInputs& inputs) {
  std::int64_t total = 0;
  for (const auto& window : inputs.windows) {
    total += static_cast<std::int64_t>(window.tokens.size()) - 1;
  }
  return total;
}

std::int64_t scored_bytes(const EvalInputs& inputs) {
  std::int64_t total = 0;
  for (const auto& window : inputs.windows) total += window.bytes;
  return total;
}

std::string language_table(const EvalInputs& inputs, const std::vector<NamedScores>& patterns) {
  std::string out = fmt::format(
      "\nLanguage modelling: {} windows of up to {} tokens, {} tokens, {} bytes\n",
      inputs.windows.size(), inputs.context, scored_tokens(inputs), scored_bytes(inputs));
  out += comparison("", patterns,
                    {{"bits per byte", language(inputs, patterns, Weight::kBytes)},
                     {"loss, nats a token", language(inputs, patterns, Weight::kTokens)}},
                    4);
  std::vector<std::pair<std::string, Quantity>> rows;
  const auto buckets = buckets_of(inputs);
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    rows.emplace_back(fmt::format("{}-{}", buckets[b].begin, buckets[b].end - 1),
                      loss_in_bucket(inputs, patterns, b));
  }
  out += "\nLoss by position in the window\n" + comparison("position", patterns, rows, 4);
  if (const auto names = domains(inputs); names.size() > 1) {
    rows.clear();
    for (const auto& name : names) {
      rows.emplace_back(name.empty() ? "(none)" : name,
                        language(inputs, patterns, Weight::kBytes, &name));
    }
    out += "\nBits per byte by domain\n" + comparison("domain", patterns, rows, 4);
  }
  return out;
}

}  // namespace

nlohmann::json eval_json(const EvalInputs& inputs, const std::vector<NamedScores>& patterns) {
  nlohmann::json out;
  out["text"] = {{"windows", inputs.windows.size()},
                 {"context", inputs.context},
                 {"tokens", scored_tokens(inputs)},
                 {"bytes", scored_bytes(inputs)}};
  for (const auto& window : inputs.windows) {
    out["windows"].push_back(
        {{"domain", window.domain}, {"tokens", window.tokens.size() - 1}, {"bytes", window.bytes}});
  }
  out["patterns"] = nlohmann::json::array();
  for (std::size_t p = 0; p < patterns.size(); ++p) {
    const Pattern& pattern = patterns[p].scores.pattern;
    nlohmann::json entry = {
        {"name", patterns[p].name}, {"pattern", pattern.str()}, {"num_full", pattern.num_full()}};
    if (!inputs.windows.empty()) {
      entry["language"] = language_json(inputs, patterns, p);
      entry["language"]["each"]["nll"] = patterns[p].scores.window_nll();
    }
    entry["tasks"] = nlohmann::json::array();
    for (std::size_t set = 0; set < inputs.tasks.size(); ++set) {
      const auto& options = inputs.tasks[set].options;
      nlohmann::json figures = {{"task", retrieval_task_name(options.task)},
                                {"context", options.context},
                                {"keys", options.num_keys},
                                {"prompts", inputs.tasks[set].prompts.size()}};
      put(figures, "accuracy", task(patterns, set, &PromptScore::right), p);
      put(figures, "loss", task(patterns, set, &PromptScore::loss), p);
      for (const auto& score : patterns[p].scores.tasks[set]) {
        figures["each"]["right"].push_back(score.right);
        figures["each"]["loss"].push_back(score.loss);
      }
      entry["tasks"].push_back(std::move(figures));
    }
    out["patterns"].push_back(std::move(entry));
  }
  return out;
}

std::string eval_table(const EvalInputs& inputs, const std::vector<NamedScores>& patterns) {
  INDEXCACHE_ASSERT(!patterns.empty());
  std::string out = "Patterns (the first is the baseline; the others show their difference)\n";
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, scores] : patterns) {
    const Pattern& pattern = scores.pattern;
    rows.push_back({name, fmt::format("{} of {} Full", pattern.num_full(), pattern.num_layers()),
                    pattern.str()});
  }
  out += text_table(rows);
  if (!inputs.windows.empty()) out += language_table(inputs, patterns);

  std::map<std::int64_t, std::vector<std::pair<std::string, Quantity>>> by_context;
  for (std::size_t set = 0; set < inputs.tasks.size(); ++set) {
    const auto& options = inputs.tasks[set].options;
    if (inputs.tasks[set].prompts.empty()) continue;
    by_context[options.context].emplace_back(
        fmt::format("{}, {} {}", retrieval_task_name(options.task), options.num_keys,
                    options.num_keys == 1 ? "key" : "keys"),
        task(patterns, set, &PromptScore::right));
  }
  for (const auto& [context, quantities] : by_context) {
    out += fmt::format("\nRetrieval at {} tokens: questions answered right, %; {} prompts a task\n",
                       context, quantities[0].second.weights.size());
    out += comparison("task", patterns, quantities, 1, 100.0);
  }
  return out;
}

}  // namespace indexcache
