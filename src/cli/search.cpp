// indexcache search: a pattern for every budget, found on a calibration text.
#include "indexcache/search/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cli/options.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/base/progress.h"
#include "indexcache/calibrate/identity.h"
#include "indexcache/calibrate/sequences.h"
#include "indexcache/calibrate/similarity.h"
#include "indexcache/calibrate/trie_evaluator.h"
#include "indexcache/screening/loss_increases.h"
#include "indexcache/search/journal.h"
#include "indexcache/search/pattern_file.h"

namespace indexcache::cli {
namespace {

struct SearchArguments {
  ModelArguments model;
  TextArguments text;
  std::string strategy = "greedy";
  std::filesystem::path out;
  std::string keep;   // empty: all budgets
  std::string start;  // empty: the baseline
  int num_blocks = 4;
  double carried_gib = 2;
  std::filesystem::path compare;
  bool json = false;
};

SearchOptions search_options(const SearchArguments& arguments, const Model& model) {
  SearchOptions options;
  options.strategy = parse_strategy(arguments.strategy);
  options.start =
      arguments.start.empty() ? model.baseline() : resolve_pattern(arguments.start, model);
  if (!arguments.keep.empty()) options.keep = parse_keep(arguments.keep, model.num_layers());
  if (options.strategy == Strategy::kBlocked) options.num_blocks = arguments.num_blocks;
  check_search_options(options);
  return options;
}

SearchSetup search_setup(const SearchArguments& arguments, const SearchOptions& options) {
  SearchSetup setup;
  setup.model_sha256 = model_sha256(arguments.model.folder);
  setup.num_layers = options.start.num_layers();
  setup.latent_norm_eps = arguments.model.latent_norm_eps;
  setup.text_sha256 = file_sha256(arguments.text.file);
  setup.context = arguments.text.sequences.context;
  setup.num_sequences = arguments.text.sequences.num_sequences;
  setup.seed = arguments.text.sequences.seed;
  setup.retrieval_share = arguments.text.sequences.retrieval_share;
  setup.index_key_dtype = arguments.model.dtype;
  setup.device = arguments.model.device;
  setup.carried_bytes = static_cast<std::int64_t>(arguments.carried_gib * (1 << 30));
  setup.strategy = options.strategy;
  if (options.strategy == Strategy::kBlocked) setup.num_blocks = options.num_blocks;
  setup.keep = options.keep;
  setup.start = options.start;
  return setup;
}

// What the strategy similarity chooses by, under the start schedule; with a bar of its own.
SimilarityMatrix similarity_of(const Model& model, const Pattern& start,
                               const std::vector<Sequence>& sequences, int threads) {
  Progress progress("similarity", "sequences", static_cast<std::int64_t>(sequences.size()));
  return measure_similarity(model, start, sequences, threads,
                            [&](int done) { progress.update(done); });
}

// What the strategy screened chooses by, likewise; a resumed search takes it from its journal.
IncreaseMatrix increases_of(const Model& model, const Pattern& start,
                            const std::vector<Sequence>& sequences, int threads, Journal& journal) {
  std::int64_t known = 0;
  for (int i = 0; i < std::ssize(sequences); ++i) known += journal.find_increases(i) != nullptr;
  Progress progress("screening", "sequences", std::ssize(sequences), known);
  return estimate_increases(model, start, sequences, threads, &journal,
                            [&](int done) { progress.update(done); });
}

// Searches with a bar that moves with every sequence, writes the pattern file, drops the journal.
PatternFile run_search(const SearchArguments& arguments, const Model& model,
                       const std::vector<Sequence>& sequences) {
  SearchOptions options = search_options(arguments, model);
  const bool by_similarity = options.strategy == Strategy::kSimilarity;
  const bool screened = options.strategy == Strategy::kScreened;
  // Refused here, before there is a journal.
  if (by_similarity || screened) {
    check_some_query_selects(sequences, model.config().index_topk,
                             by_similarity ? "similarity" : "screening");
  }
  const SearchSetup setup = search_setup(arguments, options);
  Journal journal(Journal::path_for(arguments.out), setup);

  std::optional<Progress> progress;
  std::int64_t evaluated = 0;
  std::size_t in_call = 0;
  std::string note;
  const ModelLayerRunner runner(model);
  TrieEvaluator evaluator(
      runner, sequences,
      {.num_threads = arguments.model.threads, .carried_bytes = setup.carried_bytes}, &journal,
      [&](int done, int all) {
        const auto part = static_cast<std::int64_t>(in_call) * done / all;
        progress->set_resumed(evaluator.replayed());
        progress->update(evaluated + part, note);
      });
  // Only now, so that a refusal is one line alone.
  if (journal.resumed()) {
    fmt::print(stderr, "indexcache: resuming from {}\n", Journal::path_for(arguments.out).string());
  }
  // Not in the journal: a resumed search measures the same matrix again.
  if (by_similarity) {
    options.similarity = similarity_of(model, options.start, sequences, arguments.model.threads);
  }
  if (screened) {
    options.increases =
        increases_of(model, options.start, sequences, arguments.model.threads, journal);
  }
  progress.emplace("search", "evaluations", 1);
  const auto result = search_patterns(
      options,
      [&](const Pattern& current, const std::vector<Pattern>& candidates) {
        in_call = candidates.size();
        auto losses = evaluator.evaluate(current, candidates);
        evaluated += static_cast<std::int64_t>(in_call);
        return losses;
      },
      [&](const SearchProgress& step) {
        // The start schedule is one evaluation more.
        progress->set_total(step.evaluations + step.evaluations_left + 1);
        note = fmt::format("{} Full: loss {:.4f}", step.num_full, step.loss);
        progress->set_resumed(evaluator.replayed());
        progress->update(step.evaluations + 1, note);
      });
  const ScreeningRuns screening = screened ? screening_runs(options.start) : ScreeningRuns{};
  const PatternFile file =
      make_pattern_file(setup, result, evaluator.layer_runs() + screening.layers,
                        screened ? std::optional(screening.attentions) : std::nullopt);
  write_file_atomically(arguments.out, to_json(file).dump(2) + "\n");
  journal.remove();
  return file;
}

void print_table(const PatternFile& file) {
  const int num_layers = file.setup.num_layers;
  const auto width = std::max<std::size_t>(num_layers, 7);
  fmt::print("{:>4}  {:<{}}  {:>8}  difference from the start schedule\n", "Full", "pattern", width,
             "loss");
  fmt::print("{:>4}  {:<{}}  {:>8.4f}\n", file.setup.start.num_full(), file.setup.start.str(),
             width, file.start_loss);
  for (const PatternBudget& budget : file.budgets) {
    fmt::print("{:>4}  {:<{}}  {:>8.4f}  {:+.4f} +- {:.4f}\n", budget.num_full,
               budget.pattern.str(), width, budget.loss, budget.difference, budget.standard_error);
  }
  fmt::print("{}: {} evaluations, {} layer runs{} a sequence, {:.0f} % of separate evaluations\n",
             strategy_name(file.setup.strategy), file.evaluations, file.layer_runs,
             file.attention_runs ? fmt::format(" and {} attentions", *file.attention_runs) : "",
             100 * file.layer_run_share());
}

void print_agreement(const Agreement& agreement, const PatternFile& other,
                     const std::filesystem::path& path) {
  fmt::print("agreement with {} ({}): the same sources at {} of {} budgets", path.string(),
             strategy_name(other.setup.strategy), agreement.same, agreement.both);
  for (std::size_t i = 0; i < agreement.different.size(); ++i) {
    fmt::print("{}{}", i == 0 ? "; others at " : ", ", agreement.different[i]);
  }
  fmt::print("\n");
}

void search(const SearchArguments& arguments) {
  check_writable(arguments.out);
  parse_strategy(arguments.strategy);
  const Checkpoint checkpoint = arguments.model.open();
  const ModelConfig& config = checkpoint.config();
  std::optional<PatternFile> other;
  if (!arguments.compare.empty()) other = load_pattern_file(arguments.compare, config.num_layers);
  const auto sequences = arguments.text.read(read_tokenizer(arguments.model.folder, config));
  const Model model = arguments.model.load(checkpoint);
  const PatternFile file = run_search(arguments, model, sequences);
  if (other && other->setup.model_sha256 != file.setup.model_sha256) {
    fmt::print(stderr, "indexcache: notice: {} was searched on other model files than {}\n",
               arguments.compare.string(), arguments.model.folder.string());
  }

  if (arguments.json) {
    auto json = to_json(file);
    if (other) {
      const Agreement agreement = compare_budgets(file, *other);
      json["agreement"] = {
          {"same", agreement.same}, {"both", agreement.both}, {"different", agreement.different}};
    }
    fmt::print("{}\n", json.dump(2));
    return;
  }
  print_table(file);
  if (other) print_agreement(compare_budgets(file, *other), *other, arguments.compare);
}

}  // namespace

void add_search(CLI::App& app) {
  auto arguments = std::make_shared<SearchArguments>();
  auto* verb = app.add_subcommand(
      "search", "Find which layers can share index sets, for every budget, on a calibration text");
  arguments->model.add_to(*verb);
  arguments->text.add_to(*verb);
  verb->add_option("--strategy", arguments->strategy, strategy_names())->capture_default_str();
  verb->add_option("--out", arguments->out,
                   "pattern file to write; while searching, measurements are kept in OUT.journal, "
                   "from which a killed search resumes")
      ->required();
  verb->add_option("--keep", arguments->keep,
                   "stop at this many Full layers: a count, or a/b of all layers");
  verb->add_option("--start", arguments->start,
                   "schedule to start from, and the pattern that descent refines (default: all "
                   "Full, or the model's own)");
  verb->add_option("--blocks", arguments->num_blocks, "blocks of the strategy blocked")
      ->capture_default_str();
  verb->add_option("--carry", arguments->carried_gib,
                   "GiB for states carried from step to step: more memory, fewer layer runs")
      ->check(between(0, 1e6))
      ->capture_default_str();
  verb->add_option("--compare", arguments->compare,
                   "print the agreement with another search's pattern file");
  verb->add_flag("--json", arguments->json, "print the pattern file instead of a table");
  verb->callback([arguments] { search(*arguments); });
}

}  // namespace indexcache::cli
