// How well screening's estimates (screening/loss_increases.h) tell what single swaps do to the loss,
// and what measuring those swaps takes beside them. All Full is the start.
//
//   screening_bench MODEL TEXT [--context 4096] [--sequences 8] [--tasks 0.5] [--seed 1]
//                   [--device cpu|cuda] [--json FILE]
//
// Prints both times, Spearman's rank correlation of estimated and measured increases, in how many
// layers the best source is the same, and for every budget what the pattern chosen by each costs:
// where the two differ the estimates are at fault, where both are far above the sum of their
// increases, that these do not add up.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "harness.h"
#include "indexcache/base/error.h"
#include "indexcache/base/machine.h"
#include "indexcache/calibrate/trie_evaluator.h"
#include "indexcache/screening/loss_increases.h"

namespace indexcache {
namespace {

struct Options {
  std::string model, text, device = "cpu", json;
  SequenceOptions sequences = {.num_sequences = 8, .retrieval_share = 0.5};
};

Options parse(int argc, char** argv) {
  if (argc < 3) throw input_error("usage: screening_bench MODEL TEXT [OPTIONS]");
  Options options;
  options.model = argv[1];
  options.text = argv[2];
  for (int i = 3; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--context") options.sequences.context = std::stoll(value);
    if (option == "--sequences") options.sequences.num_sequences = std::stoi(value);
    if (option == "--tasks") options.sequences.retrieval_share = std::stod(value);
    if (option == "--seed") options.sequences.seed = std::stoull(value);
    if (option == "--device") options.device = value;
    if (option == "--json") options.json = value;
  }
  return options;
}

struct Pair {
  int layer, source;
  double estimated, measured;
};

std::vector<double> ranks(const std::vector<Pair>& pairs, double Pair::*value) {
  std::vector<std::size_t> order(pairs.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](std::size_t i) { return pairs[i].*value; });
  std::vector<double> rank(pairs.size());
  for (std::size_t place = 0; place < order.size(); ++place) {
    rank[order[place]] = static_cast<double>(place);
  }
  return rank;
}

double rank_correlation(const std::vector<Pair>& pairs) {
  const auto a = ranks(pairs, &Pair::estimated), b = ranks(pairs, &Pair::measured);
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  const auto n = static_cast<double>(a.size());
  return 1 - 6 * squares / (n * (n * n - 1));
}

double seconds_of(const std::function<void()>& work) {
  const double begin = bench::seconds_of(CLOCK_MONOTONIC);
  work();
  return bench::seconds_of(CLOCK_MONOTONIC) - begin;
}

int same_best_sources(const IncreaseMatrix& a, const IncreaseMatrix& b) {
  int same = 0;
  for (std::size_t layer = 1; layer < a.size(); ++layer) {
    same += std::ranges::min_element(a[layer]) - a[layer].begin() ==
            std::ranges::min_element(b[layer]) - b[layer].begin();
  }
  return same;
}

void run(const Options& options, const std::string& command) {
  const auto tokenizer =
      Tokenizer::from_file(std::filesystem::path(options.model) / "tokenizer.json");
  const auto sequences = make_sequences(read_documents(options.text), tokenizer, options.sequences);
  const auto model = Model::load(Checkpoint::open(options.model),
                                 {.device = at::Device(options.device), .latent_norm_eps = {}});
  const int num_layers = model.num_layers();
  const auto start = Pattern::full(num_layers);
  const ModelLayerRunner runner(model);
  TrieEvaluator evaluator(runner, sequences, {});

  IncreaseMatrix estimated;
  const auto estimate = [&] { estimated = estimate_increases(model, start, sequences); };
  estimate();
  const double screening_seconds = seconds_of(estimate);

  std::vector<Pattern> swaps = {start};
  for (int layer = 1; layer < num_layers; ++layer) {
    for (int source = 0; source < layer; ++source) {
      swaps.push_back(start.with_shared(layer, source));
    }
  }
  std::vector<Losses> losses;
  const double swap_seconds = seconds_of([&] { losses = evaluator.evaluate(start, swaps); });
  const double start_loss = losses[0].mean();
  IncreaseMatrix measured;
  std::vector<Pair> pairs;
  for (int layer = 0; layer < num_layers; ++layer) {
    measured.emplace_back();
    for (int source = 0; source < layer; ++source) {
      measured[layer].push_back(losses[pairs.size() + 1].mean() - start_loss);
      pairs.push_back({layer, source, estimated[layer][source], measured[layer][source]});
    }
  }
  const double correlation = rank_correlation(pairs);
  const int same = same_best_sources(estimated, measured);
  fmt::print("screening {:.2f} s, measuring {} swaps {:.2f} s\n", screening_seconds, pairs.size(),
             swap_seconds);
  fmt::print("rank correlation {:.3f}, the same best source in {} of {} layers\n", correlation,
             same, num_layers - 1);

  const auto by_estimate = least_increase_patterns(estimated, start.full_layers(), 1);
  const auto by_measure = least_increase_patterns(measured, start.full_layers(), 1);
  auto patterns = by_estimate;
  for (const auto& pattern : by_measure) {
    if (std::ranges::find(patterns, pattern) == patterns.end()) patterns.push_back(pattern);
  }
  const auto pattern_losses = evaluator.evaluate(start, patterns);
  const auto difference = [&](const Pattern& pattern) {
    const auto at = std::ranges::find(patterns, pattern) - patterns.begin();
    return pattern_losses[static_cast<std::size_t>(at)].mean() - start_loss;
  };
  const auto sum = [&](const IncreaseMatrix& increases, const Pattern& pattern) {
    double total = 0;
    for (int layer = 0; layer < num_layers; ++layer) {
      if (!pattern.is_full(layer)) total += increases[layer][pattern.source(layer)];
    }
    return total;
  };
  auto budgets = nlohmann::ordered_json::array();
  fmt::print("Full  by estimates (their sum)  by measured swaps (their sum)\n");
  for (std::size_t i = 0; i < by_estimate.size(); ++i) {
    const nlohmann::ordered_json budget = {{"count", by_estimate[i].num_full()},
                                           {"by_estimates", difference(by_estimate[i])},
                                           {"sum_of_estimates", sum(estimated, by_estimate[i])},
                                           {"by_swaps", difference(by_measure[i])},
                                           {"sum_of_swaps", sum(measured, by_measure[i])}};
    fmt::print("{:>4}  {:+.4f} ({:+.4f})  {:+.4f} ({:+.4f})\n", by_estimate[i].num_full(),
               budget["by_estimates"].get<double>(), budget["sum_of_estimates"].get<double>(),
               budget["by_swaps"].get<double>(), budget["sum_of_swaps"].get<double>());
    budgets.push_back(budget);
  }
  if (options.json.empty()) return;
  auto listed = nlohmann::ordered_json::array();
  for (const auto& pair : pairs) {
    listed.push_back({pair.layer, pair.source, pair.estimated, pair.measured});
  }
  const nlohmann::ordered_json report = {
      {"bench", "screening"},
      {"device", options.device == "cpu" ? cpu_name() : options.device},
      {"commit", INDEXCACHE_COMMIT},
      {"command", command},
      {"screening_seconds", screening_seconds},
      {"swap_seconds", swap_seconds},
      {"rank_correlation", correlation},
      {"same_best_sources", same},
      {"start_loss", start_loss},
      {"budgets", budgets},
      {"layer_source_estimated_measured", listed}};
  std::ofstream(options.json) << report.dump(1) << "\n";
}

}  // namespace
}  // namespace indexcache

int main(int argc, char** argv) {
  try {
    indexcache::run(indexcache::parse(argc, argv),
                    fmt::format("{}", fmt::join(argv, argv + argc, " ")));
  } catch (const std::exception& error) {
    fmt::print(stderr, "screening_bench: {}\n", error.what());
    return 1;
  }
}
