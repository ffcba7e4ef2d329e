// The trie over real layers: losses equal those of separate forward passes bit for bit.
#include <ATen/Parallel.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/calibrate/overlap.h"
#include "indexcache/calibrate/trie_evaluator.h"

namespace indexcache {
namespace {

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "tests/golden/models" / name;
}

Model load(const std::string& name, at::ScalarType dtype = at::kFloat) {
  ModelOptions options;
  options.dtype = dtype;
  return Model::load(Checkpoint::open(golden(name)), options);
}

std::vector<Sequence> random_sequences(const Model& model, int count, int context) {
  std::mt19937 random(11);
  std::vector<Sequence> sequences(count);
  for (Sequence& sequence : sequences) {
    for (int t = 0; t <= context; ++t) {
      sequence.tokens.push_back(static_cast<std::int32_t>(random() % model.config().vocab_size));
    }
  }
  sequences.back().scored = {3, 40, context - 1};
  return sequences;
}

// The definition: a whole forward pass, then the mean over the scored positions.
double separate_loss(const Model& model, const Sequence& sequence, const Pattern& pattern,
                     std::int64_t chunk) {
  const std::vector<std::int64_t> ids(sequence.tokens.begin(), sequence.tokens.end());
  const auto tokens = at::tensor(ids, at::kLong);
  const auto context = tokens.size(0) - 1;
  auto cache = model.make_cache(pattern, context);
  const auto hidden = model.forward(tokens.narrow(0, 0, context), cache, chunk);
  std::vector<std::int64_t> scored(sequence.scored.begin(), sequence.scored.end());
  for (std::int64_t t = 0;
       scored.size() < static_cast<std::size_t>(context) && sequence.scored.empty(); ++t) {
    scored.push_back(t);
  }
  const auto positions = at::tensor(scored, at::kLong);
  const auto losses = model.token_losses(hidden.index_select(0, positions),
                                         tokens.narrow(0, 1, context).index_select(0, positions));
  double sum = 0;
  for (std::size_t i = 0; i < scored.size(); ++i) sum += losses.const_data_ptr<float>()[i];
  return sum / static_cast<double>(scored.size());
}

// Patterns around `current` that the model has the indexers for, and their neighbours.
std::vector<Pattern> candidates(const Pattern& current) {
  std::set<Pattern> patterns = {current};
  const auto full = current.full_layers();
  for (std::size_t i = 1; i < full.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const auto moved = current.with_shared(full[i], full[j]);
      patterns.insert(moved);
      if (j + 2 < i) patterns.insert(moved.with_shared(full[i - 1], full[0]));
    }
  }
  return {patterns.begin(), patterns.end()};
}

class TrieOverModel : public ::testing::TestWithParam<std::pair<const char*, at::ScalarType>> {};

TEST_P(TrieOverModel, LossesAreThoseOfSeparateRunsBitForBit) {
  constexpr std::int64_t kChunk = 32;  // 90 tokens: chunks of 32, 32 and 26
  const Model model = load(GetParam().first, GetParam().second);
  const auto sequences = random_sequences(model, 3, 90);
  const auto patterns = candidates(model.baseline());
  ASSERT_GT(patterns.size(), 1u);
  const ModelLayerRunner runner(model, kChunk);
  std::vector<std::vector<Losses>> results;
  for (const int threads : {1, 3}) {
    for (const std::int64_t carried : {std::int64_t{0}, std::int64_t{1} << 26}) {
      TrieEvaluator evaluator(runner, sequences,
                              {.num_threads = threads, .carried_bytes = carried});
      results.push_back(evaluator.evaluate(model.baseline(), patterns));
      // Again, from carried states and one by one.
      for (std::size_t i = 0; i < patterns.size(); i += 3) {
        EXPECT_EQ(evaluator.evaluate(patterns.back(), {patterns[i]})[0].per_sequence,
                  results.back()[i].per_sequence);
      }
    }
  }
  const int torch_threads = at::get_num_threads();
  at::set_num_threads(1);
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const double expected = separate_loss(model, sequences[s], patterns[i], kChunk);
      for (const auto& result : results) {
        EXPECT_EQ(result[i].per_sequence[s], expected) << patterns[i].str() << ", sequence " << s;
      }
    }
  }
  at::set_num_threads(torch_threads);
  // Sharing changes something, or equality would show nothing.
  std::set<std::vector<double>> distinct;
  for (const auto& losses : results[0]) distinct.insert(losses.per_sequence);
  EXPECT_GT(distinct.size(), patterns.size() / 2);
}

INSTANTIATE_TEST_SUITE_P(Goldens, TrieOverModel,
                         ::testing::Values(std::pair("glm_full", at::kFloat),
                                           std::pair("glm_full", at::kBFloat16),
                                           std::pair("glm_mixed", at::kFloat),
                                           std::pair("deepseek_yarn", at::kFloat)));

TEST(Overlap, IsTheDefinition) {
  const Model model = load("glm_full");
  const auto sequences = random_sequences(model, 2, 50);
  const auto matrix = measure_overlap(model, sequences);
  const auto k = model.config().index_topk;
  const int n = model.num_layers();
  std::vector<std::vector<double>> expected(n, std::vector<double>(n, 0));
  for (const Sequence& sequence : sequences) {
    const std::vector<std::int64_t> ids(sequence.tokens.begin(), sequence.tokens.end() - 1);
    std::vector<at::Tensor> sets(n);
    auto cache = model.make_cache(Pattern::full(n), 50);
    model.forward(at::tensor(ids, at::kLong), cache, 50,
                  [&](const IndexStep& step) { sets[step.layer] = step.index_set; });
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        for (std::int64_t t = k - 1; t < 50; ++t) {
          const auto* a = sets[i].const_data_ptr<std::int32_t>() + t * k;
          const auto* b = sets[j].const_data_ptr<std::int32_t>() + t * k;
          const std::set<std::int32_t> in_b(b, b + k);
          for (std::int64_t s = 0; s < k; ++s) expected[i][j] += in_b.contains(a[s]);
        }
      }
    }
  }
  const auto queries = 2 * (50 - k + 1);
  EXPECT_EQ(matrix.num_queries, queries);
  for (int i = 0; i < n; ++i) {
    EXPECT_EQ(matrix.overlap[i][i], 1);
    for (int j = 0; j < n; ++j) {
      EXPECT_DOUBLE_EQ(matrix.overlap[i][j], expected[i][j] / static_cast<double>(queries * k));
    }
  }
  EXPECT_LT(matrix.at_distance(1).mean, 1);
  EXPECT_THROW(measure_overlap(model, random_sequences(model, 1, 19)), InputError);
}

TEST(Overlap, CoversTheFullLayersOfAMixedModel) {
  const Model model = load("glm_mixed");
  const auto matrix = measure_overlap(model, random_sequences(model, 1, 60));
  EXPECT_EQ(matrix.layers, model.baseline().full_layers());
  EXPECT_EQ(to_json(matrix)["overlap"].size(), matrix.layers.size());
  EXPECT_NE(to_svg(matrix).find("</svg>"), std::string::npos);
}

}  // namespace
}  // namespace indexcache
