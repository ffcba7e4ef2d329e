#include "indexcache/calibrate/trie_evaluator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "calibrate/fake_runner.h"
#include "indexcache/base/error.h"
#include "indexcache/search/pattern_file.h"
#include "support/temporary_folder.h"

namespace indexcache {
namespace {

constexpr int kLayers = 9;

Pattern random_pattern(std::mt19937& random, double share_full) {
  std::vector<int> sources, full;
  for (int layer = 0; layer < kLayers; ++layer) {
    if (layer == 0 || std::bernoulli_distribution(share_full)(random)) {
      sources.push_back(Pattern::kFull);
      full.push_back(layer);
    } else {
      sources.push_back(full[random() % full.size()]);
    }
  }
  return Pattern::from_sources(sources);
}

std::vector<Pattern> random_patterns(std::mt19937& random, std::size_t count) {
  std::set<Pattern> patterns;
  while (patterns.size() < count) patterns.insert(random_pattern(random, 0.6));
  return {patterns.begin(), patterns.end()};
}

std::int64_t distinct_prefixes(const std::vector<Pattern>& patterns) {
  std::set<std::vector<int>> prefixes;
  for (const Pattern& pattern : patterns) {
    for (int length = 1; length <= pattern.num_layers(); ++length) {
      prefixes.insert({pattern.sources().begin(), pattern.sources().begin() + length});
    }
  }
  return static_cast<std::int64_t>(prefixes.size());
}

TEST(TriePlan, RunsEveryDistinctPrefixOnceWithoutCarrying) {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    const auto patterns = random_patterns(random, 1 + round);
    TriePlanner planner(kLayers, 0);
    EXPECT_EQ(static_cast<std::int64_t>(planner.plan(patterns[0], patterns).steps.size()),
              distinct_prefixes(patterns));
  }
}

TEST(TriePlan, HoldsAtMostOneStateALevel) {
  std::mt19937 random(2);
  const auto patterns = random_patterns(random, 60);
  TriePlanner planner(kLayers, 0);
  const auto plan = planner.plan(patterns[0], patterns);
  int alive = 0, most = 0;
  for (const TrieStep& step : plan.steps) {
    alive += step.leaf < 0 ? 1 : 0;
    most = std::max(most, alive);
    alive -= step.last_reader ? 1 : 0;
  }
  EXPECT_EQ(alive, 0);
  EXPECT_LE(most, kLayers);
}

TEST(TriePlan, KeepsOnlyIndexSetsThatALaterLayerReads) {
  const auto pattern = Pattern::parse("-1,0,-1,-1,2,2", 6);
  TriePlanner planner(6, 0);
  const auto plan = planner.plan(pattern, {pattern});
  using ::testing::ElementsAre;
  std::vector<std::vector<int>> live;
  for (const TrieStep& step : plan.steps) live.push_back(step.live);
  EXPECT_THAT(live, ElementsAre(ElementsAre(0), ElementsAre(), ElementsAre(2), ElementsAre(2),
                                ElementsAre(2), ElementsAre()));
}

TEST(TriePlan, CarriedTrunkLeavesOnlyWhatDiffers) {
  TriePlanner planner(6, 1);
  const auto full = Pattern::full(6);
  EXPECT_EQ(planner.plan(full, {full}).steps.size(), 6u);
  // Layer 4 Shared: layers 4 and 5 are run, 0-3 carried.
  EXPECT_EQ(planner.plan(full, {full.with_shared(4, 2)}).steps.size(), 2u);
  // The trunk moves there: layer 4 of it was not the trunk's when it ran.
  const auto moved = full.with_shared(4, 2);
  EXPECT_EQ(planner.plan(moved, {moved.with_shared(5, 0)}).steps.size(), 2u);
  EXPECT_EQ(planner.plan(moved, {moved.with_shared(5, 1)}).steps.size(), 1u);
  // Carrying every third state: from layer 2's.
  TriePlanner sparse(6, 3);
  sparse.plan(full, {full});
  EXPECT_EQ(sparse.plan(full, {full.with_shared(4, 2)}).steps.size(), 3u);
  EXPECT_EQ(sparse.plan(full, {full.with_shared(3, 2)}).steps.size(), 3u);
}

TEST(TrieEvaluator, LossesAreThoseOfSeparateRuns) {
  const FakeRunner runner(kLayers);
  const auto sequences = fake_sequences(3, 40);
  std::mt19937 random(3);
  for (const std::int64_t carried : {std::int64_t{0}, std::int64_t{14000}, std::int64_t{1} << 20}) {
    TrieEvaluator evaluator(runner, sequences, {.num_threads = 2, .carried_bytes = carried});
    Pattern current = Pattern::full(kLayers);
    for (int call = 0; call < 12; ++call) {
      // As a search asks: near `current`, which moves slowly; and now and then anything.
      std::set<Pattern> chosen = {random_pattern(random, 0.8)};
      for (int i = 0; i < 12; ++i) {
        const auto full = current.full_layers();
        const auto at = 1 + random() % (full.size() - 1);
        chosen.insert(current.with_shared(full[at], full[random() % at]));
      }
      const std::vector<Pattern> patterns(chosen.begin(), chosen.end());
      runner.runs = 0;
      const auto before = evaluator.layer_runs();
      const auto losses = evaluator.evaluate(current, patterns);
      EXPECT_EQ(runner.runs, 3 * (evaluator.layer_runs() - before));
      for (std::size_t i = 0; i < patterns.size(); ++i) {
        EXPECT_EQ(losses[i].per_sequence,
                  separate_losses(runner, sequences, patterns[i]).per_sequence)
            << patterns[i].str() << " from " << current.str();
      }
      current = patterns[random() % patterns.size()];
      if (current.num_full() < 3) current = Pattern::full(kLayers);
    }
  }
}

TEST(TrieEvaluator, CarryingSavesLayerRunsAndChangesNothingElse) {
  const FakeRunner runner(kLayers);
  const auto sequences = fake_sequences(2, 30);
  std::vector<std::int64_t> runs;
  std::vector<std::string> files;
  for (const std::int64_t carried : {std::int64_t{0}, std::int64_t{1} << 20}) {
    TrieEvaluator evaluator(runner, sequences, {.num_threads = 1, .carried_bytes = carried});
    SearchOptions options;
    options.strategy = Strategy::kLazy;
    options.start = Pattern::full(kLayers);
    const auto result = search_patterns(options, [&](const auto& current, const auto& patterns) {
      return evaluator.evaluate(current, patterns);
    });
    runs.push_back(evaluator.layer_runs());
    SearchSetup setup;
    setup.num_layers = kLayers;
    setup.start = options.start;
    files.push_back(to_json(make_pattern_file(setup, result, 0)).dump());
  }
  EXPECT_LT(runs[1], runs[0]);
  EXPECT_EQ(files[0], files[1]);
}

// --- Resuming.

struct Killed {};

SearchSetup test_setup() {
  SearchSetup setup;
  setup.num_layers = kLayers;
  setup.start = Pattern::full(kLayers);
  setup.strategy = Strategy::kRoutedLazy;
  return setup;
}

std::string search_file(const LayerRunner& runner, const std::filesystem::path& journal_path,
                        int threads) {
  Journal journal(journal_path, test_setup());
  TrieEvaluator evaluator(runner, fake_sequences(3, 20),
                          {.num_threads = threads, .carried_bytes = 1 << 20}, &journal);
  SearchOptions options;
  options.strategy = Strategy::kRoutedLazy;
  options.start = Pattern::full(kLayers);
  const auto result = search_patterns(options, [&](const auto& current, const auto& patterns) {
    return evaluator.evaluate(current, patterns);
  });
  journal.remove();
  return to_json(make_pattern_file(test_setup(), result, evaluator.layer_runs())).dump(2);
}

// Dies in its n-th layer run.
class DyingRunner : public FakeRunner {
 public:
  DyingRunner(int num_layers, std::int64_t last) : FakeRunner(num_layers), last_(last) {}
  LayerOutput run_layer(int layer, const at::Tensor& hidden,
                        const at::Tensor& source_set) const override {
    if (runs >= last_) throw Killed();
    return FakeRunner::run_layer(layer, hidden, source_set);
  }

 private:
  std::int64_t last_;
};

TEST(TrieEvaluator, AResumedSearchLeavesTheSameFile) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "pattern.json.journal";
  const FakeRunner runner(kLayers);
  const auto expected = search_file(runner, path, 1);
  const std::int64_t all_runs = runner.runs;
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_EQ(search_file(runner, path, 3), expected);

  std::mt19937 random(4);
  for (int round = 0; round < 10; ++round) {
    std::int64_t total = 0;
    std::string file;
    while (file.empty()) {
      const auto last = all_runs / 8 + static_cast<std::int64_t>(random() % (all_runs / 2));
      const DyingRunner dying(kLayers, last);
      try {
        file = search_file(dying, path, 1 + round % 3);
      } catch (const Killed&) {
        // Some kills tear the last line.
        if (random() % 2 == 0) {
          std::ofstream(path, std::ios::app | std::ios::binary) << "{\"call\": 3, \"seq";
        }
      }
      total += dying.runs;
    }
    EXPECT_EQ(file, expected);
    EXPECT_GE(total, all_runs);
  }
}

TEST(TrieEvaluator, CountsWhatTheJournalAnswered) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "journal";
  const FakeRunner runner(kLayers);
  const auto full = Pattern::full(kLayers);
  const std::vector<Pattern> moves = {full.with_shared(3, 1), full.with_shared(4, 2)};
  {
    Journal journal(path, test_setup());
    journal.append(0, 0, {full}, {1.5});
    journal.append(0, 1, {full}, {2.5});
    journal.append(1, 1, moves, {3.5, 4.5});
  }
  Journal journal(path, test_setup());
  TrieEvaluator evaluator(runner, fake_sequences(2, 20), {.num_threads = 2}, &journal);
  EXPECT_EQ(evaluator.evaluate(full, {full})[0].mean(), 2);
  EXPECT_EQ(evaluator.replayed(), 1);
  EXPECT_EQ(evaluator.evaluate(full, moves)[1].per_sequence[1], 4.5);
  EXPECT_EQ(evaluator.replayed(), 2);  // half of two
  evaluator.evaluate(full, moves);
  EXPECT_EQ(evaluator.replayed(), 2);
}

TEST(TrieEvaluator, RefusesAContextLargerThanMemory) {
  class Vast : public FakeRunner {
   public:
    Vast() : FakeRunner(kLayers) {}
    std::int64_t hidden_bytes_per_token() const override { return std::int64_t{1} << 50; }
  };
  const Vast runner;
  try {
    TrieEvaluator(runner, fake_sequences(1, 10), {.num_threads = 1});
    ADD_FAILURE();
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("context of 10 tokens"));
  }
}

}  // namespace
}  // namespace indexcache
