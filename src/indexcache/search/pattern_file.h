// The pattern file: what a search found at every budget, and what it was searched on. JSON.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/policy/pattern.h"
#include "indexcache/search/search.h"

namespace indexcache {

// What a search ran on. Two searches with the same setup give the same result; a journal continues
// only a search with its own setup.
struct SearchSetup {
  std::string model_sha256;  // of config.json, tokenizer.json and the weight files
  int num_layers = 0;
  std::optional<double> latent_norm_eps;

  std::string text_sha256;  // of the calibration text's file
  std::int64_t context = 0;
  int num_sequences = 0;
  std::uint64_t seed = 0;
  double retrieval_share = 0;

  std::string index_key_dtype;     // "fp32" or "bf16": what index scores were computed in
  std::string device;              // "cpu" or "cuda"
  std::int64_t carried_bytes = 0;  // states kept between steps: changes layer runs, never losses

  Strategy strategy = Strategy::kGreedy;
  std::optional<int> num_blocks;  // blocked
  std::optional<int> keep;        // as asked for; none: all budgets
  Pattern start = Pattern::full(1);

  friend bool operator==(const SearchSetup&, const SearchSetup&) = default;
};

struct PatternBudget {
  int num_full = 0;
  Pattern pattern = Pattern::full(1);
  double loss = 0;            // mean over the calibration sequences
  double difference = 0;      // from the start schedule's loss
  double standard_error = 0;  // of the difference, paired over sequences
};

struct PatternFile {
  SearchSetup setup;
  double start_loss = 0;
  std::int64_t evaluations = 0;  // patterns evaluated besides the start schedule
  // Layer evaluations made, per sequence; screened: those of the screening too, a gradient counted
  // as two.
  std::int64_t layer_runs = 0;
  // Screened: attentions computed for other index sets beside the layer runs, per sequence.
  std::optional<std::int64_t> attention_runs;
  std::vector<PatternBudget> budgets;  // most Full layers first

  // layer_runs against evaluating the start schedule and every candidate separately.
  double layer_run_share() const;
  // The pattern at a budget; the start schedule counts where no budget has its number of Full
  // layers. Without `keep`: the count that the search was asked for, or the only one there is.
  // Throws InputError that lists the counts there are; `where` names the file in it.
  const Pattern& at(std::optional<std::string_view> keep, const std::string& where) const;
};

PatternFile make_pattern_file(const SearchSetup& setup, const SearchResult& result,
                              std::int64_t layer_runs,
                              std::optional<std::int64_t> attention_runs = {});

// Standard error of the mean difference of paired losses; 0 for fewer than two sequences.
double paired_standard_error(const Losses& a, const Losses& b);

nlohmann::ordered_json to_json(const SearchSetup& setup);
nlohmann::ordered_json to_json(const PatternFile& file);

// Throws InputError naming the file, the entry, what was expected and what was found.
PatternFile parse_pattern_file(std::string_view text, const std::string& where);
// For a model of num_layers layers; one for another number is refused too.
PatternFile load_pattern_file(const std::filesystem::path& path, int num_layers);

// The pattern that FILE[:KEEP] names for a model of num_layers layers.
Pattern read_pattern_file(const std::filesystem::path& path, std::optional<std::string_view> keep,
                          int num_layers);

// Agreement of two searches: at how many of the budgets that both have the sources are the same.
struct Agreement {
  int same = 0;
  int both = 0;
  std::vector<int> different;  // counts of Full layers, most first
};
Agreement compare_budgets(const PatternFile& a, const PatternFile& b);

}  // namespace indexcache
