#include "indexcache/calibrate/similarity.h"

#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>

#include "indexcache/base/error.h"
#include "indexcache/calibrate/layer_runner.h"
#include "indexcache/layers/mla.h"
#include "indexcache/layers/norm.h"
#include "support/random_model.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kVocabulary = 64;

std::vector<Sequence> random_sequences(const std::vector<int>& contexts) {
  std::mt19937 random(3);
  std::vector<Sequence> sequences;
  for (const int context : contexts) {
    sequences.emplace_back();
    for (int t = 0; t <= context; ++t) {
      sequences.back().tokens.push_back(static_cast<std::int32_t>(random() % kVocabulary));
    }
  }
  return sequences;
}

MlaExpanded in_double(const MlaExpanded& expanded) {
  const auto convert = [](const at::Tensor& x) { return x.to(at::kDouble).contiguous(); };
  return {convert(expanded.q), convert(expanded.k), convert(expanded.v)};
}

// Plain attention of one query over the keys of a set, by the expanded form in double: [h * v].
std::vector<double> attend(const MlaExpanded& expanded, double scale, std::int64_t t,
                           std::span<const std::int32_t> index_set) {
  const auto& [q, k, v] = expanded;
  const auto heads = q.size(1), dim = q.size(2), value_dim = v.size(2);
  std::vector<double> out;
  for (std::int64_t h = 0; h < heads; ++h) {
    const auto row = [&](const at::Tensor& x, std::int64_t token, std::int64_t size) {
      return x.const_data_ptr<double>() + (token * heads + h) * size;
    };
    std::vector<double> head(value_dim, 0);
    double sum = 0;
    for (const std::int32_t s : index_set) {
      double logit = 0;
      for (std::int64_t i = 0; i < dim; ++i) logit += row(q, t, dim)[i] * row(k, s, dim)[i];
      const double weight = std::exp(scale * logit);
      sum += weight;
      for (std::int64_t i = 0; i < value_dim; ++i) head[i] += weight * row(v, s, value_dim)[i];
    }
    for (const double value : head) out.push_back(value / sum);
  }
  return out;
}

double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

// What a whole pass of one sequence under `pattern` gives every layer: its input and the set it
// reads.
struct LayerInputs {
  std::vector<at::Tensor> hidden, read;
};

LayerInputs pass(const Model& model, const Pattern& pattern, const Sequence& sequence) {
  const ModelLayerRunner runner(model, 512);
  LayerInputs inputs;
  auto hidden = runner.embed(sequence);
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    const auto source_set =
        pattern.is_full(layer) ? at::Tensor() : inputs.read[pattern.source(layer)];
    inputs.hidden.push_back(hidden);
    const auto output = runner.run_layer(layer, hidden, source_set);
    hidden = output.hidden;
    inputs.read.push_back(pattern.is_full(layer) ? output.own_set : source_set);
  }
  return inputs;
}

SimilarityMatrix by_definition(const Model& model, const Pattern& pattern,
                               const std::vector<Sequence>& sequences) {
  const auto shape = block_shape(model.config(), {});
  const auto top_k = model.config().index_topk;
  SimilarityMatrix matrix;
  for (int layer = 0; layer < model.num_layers(); ++layer) matrix.emplace_back(layer, 0.0);
  std::int64_t num_queries = 0;
  for (const Sequence& sequence : sequences) {
    const auto context = static_cast<std::int64_t>(sequence.tokens.size()) - 1;
    num_queries += std::max<std::int64_t>(context - top_k + 1, 0);
    const auto inputs = pass(model, pattern, sequence);
    const auto rope = make_rope_table(rope_frequencies(model.config()), 0, context);
    const auto row = [&](int layer, std::int64_t t) {
      return std::span(inputs.read[layer].const_data_ptr<std::int32_t>() + t * top_k,
                       static_cast<std::size_t>(top_k));
    };
    for (int layer = 0; layer < model.num_layers(); ++layer) {
      const auto& block = model.weights().blocks[layer];
      const auto x = rms_norm(inputs.hidden[layer], block.input_norm, shape.rms_norm_eps);
      const auto expanded =
          in_double(mla_expand(mla_project(x, block.mla, shape.mla, rope), block.mla, shape.mla));
      for (std::int64_t t = top_k - 1; t < context; ++t) {
        const auto own = attend(expanded, shape.mla.softmax_scale, t, row(layer, t));
        for (int source = 0; source < layer; ++source) {
          if (!pattern.is_full(source)) continue;
          matrix[layer][source] +=
              cosine(own, attend(expanded, shape.mla.softmax_scale, t, row(source, t)));
        }
      }
    }
  }
  for (auto& row : matrix) {
    for (double& value : row) value /= static_cast<double>(num_queries);
  }
  return matrix;
}

class Similarity : public ::testing::Test {
 protected:
  const testing::TemporaryFolder folder_;
  const Model model_ = testing::random_model(folder_.path(), kVocabulary);
};

TEST_F(Similarity, IsTheDefinition) {
  // One sequence of several chunks, one of one, one without a query that selects.
  const auto sequences = random_sequences({530, 40, 7});
  for (const char* text : {"FFFF", "-1,-1,0,1", "FSFS"}) {
    const auto pattern = Pattern::parse(text, 4);
    const auto matrix = measure_similarity(model_, pattern, sequences);
    const auto expected = by_definition(model_, pattern, sequences);
    ASSERT_EQ(matrix.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      ASSERT_EQ(matrix[i].size(), static_cast<std::size_t>(i));
      for (int j = 0; j < i; ++j) {
        EXPECT_NEAR(matrix[i][j], expected[i][j], 1e-5) << text << ": " << i << ", " << j;
        EXPECT_LE(std::abs(matrix[i][j]), 1 + 1e-12);
        if (!pattern.is_full(j)) {
          EXPECT_EQ(matrix[i][j], 0);
        } else if (pattern.source(i) == j) {
          EXPECT_NEAR(matrix[i][j], 1, 1e-12);  // it reads that set
        } else {
          EXPECT_LT(matrix[i][j], 0.99);  // other sets, or nothing would be shown
        }
      }
    }
  }
}

TEST_F(Similarity, HasTheSameBitsOnAnyNumberOfThreads) {
  const auto sequences = random_sequences({60, 50, 40});
  const auto one = measure_similarity(model_, Pattern::full(4), sequences, 1);
  std::vector<int> told;
  const auto three = measure_similarity(model_, Pattern::full(4), sequences, 3,
                                        [&](int done) { told.push_back(done); });
  EXPECT_EQ(one, three);
  EXPECT_THAT(told, ::testing::ElementsAre(1, 2, 3));
}

TEST_F(Similarity, NeedsAQueryThatSelects) {
  const auto message = testing::thrown<InputError>([&] {
    measure_similarity(model_, Pattern::full(4), random_sequences({7, 5}));
  });
  EXPECT_EQ(message, "similarity: context: expected at least index_topk = 8 tokens, found 7");
  // With exactly k tokens the one query's sets are the same set.
  for (const auto& row : measure_similarity(model_, Pattern::full(4), random_sequences({8}))) {
    for (const double value : row) EXPECT_NEAR(value, 1, 1e-9);
  }
}

TEST_F(Similarity, NeedsTheIndexersOfThePattern) {
  const auto folder =
      std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "tests/golden/models/glm_mixed";
  const Model mixed = Model::load(Checkpoint::open(folder), {});
  const auto sequences = random_sequences({60});
  EXPECT_THAT(testing::thrown<InputError>(
                  [&] { measure_similarity(mixed, Pattern::full(mixed.num_layers()), sequences); }),
              HasSubstr("indexer weights"));
  const auto baseline = mixed.baseline();
  const auto matrix = measure_similarity(mixed, baseline, sequences);
  for (int layer = 0; layer < mixed.num_layers(); ++layer) {
    if (!baseline.is_full(layer)) {
      EXPECT_NEAR(matrix[layer][baseline.source(layer)], 1, 1e-12);
    }
  }
}

}  // namespace
}  // namespace indexcache
