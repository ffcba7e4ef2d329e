#include "indexcache/screening/loss_increases.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <variant>

#include "indexcache/base/error.h"
#include "indexcache/calibrate/layer_runner.h"
#include "indexcache/layers/norm.h"
#include "support/random_model.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::int64_t kVocabulary = 64;

Sequence random_sequence(int context, std::vector<std::int32_t> scored = {}) {
  std::mt19937 random(3 + static_cast<unsigned>(context));
  Sequence sequence;
  for (int t = 0; t <= context; ++t) {
    sequence.tokens.push_back(static_cast<std::int32_t>(random() % kVocabulary));
  }
  sequence.scored = std::move(scored);
  return sequence;
}

at::Tensor wide(const at::Tensor& x) { return x.defined() ? x.to(at::kDouble) : x; }

BlockWeights wide(const BlockWeights& weights) {
  BlockWeights out = weights;
  const auto widen = [](auto&... tensors) { ((tensors = wide(tensors)), ...); };
  auto& mla = out.mla;
  widen(out.input_norm, out.post_attention_norm, mla.q_a_proj, mla.q_a_norm, mla.q_b_proj,
        mla.kv_a_proj, mla.kv_a_norm, mla.kv_b_proj, mla.o_proj);
  if (auto* moe = std::get_if<MoeWeights>(&out.mlp)) {
    widen(moe->router, moe->selection_bias, moe->experts_gate_up, moe->experts_down,
          moe->shared.gate, moe->shared.up, moe->shared.down);
  } else {
    auto& mlp = std::get<MlpWeights>(out.mlp);
    widen(mlp.gate, mlp.up, mlp.down);
  }
  return out;
}

at::Tensor ids(const std::vector<std::int32_t>& values, std::size_t begin, std::size_t end) {
  return at::tensor(std::vector<std::int64_t>(values.begin() + static_cast<std::ptrdiff_t>(begin),
                                              values.begin() + static_cast<std::ptrdiff_t>(end)),
                    at::kLong);
}

// The model in double as one graph from the embeddings to the loss, with the index sets of the
// model's own pass: what the estimate speaks of, by another way than layer after layer.
class WholeGraph {
 public:
  WholeGraph(const Model& model, const Pattern& pattern, const Sequence& sequence)
      : model_(model),
        sequence_(sequence),
        num_tokens_(std::ssize(sequence.tokens) - 1),
        shape_(block_shape(model.config(), {})) {
    const ModelLayerRunner runner(model);
    auto hidden = runner.embed(sequence);
    for (int layer = 0; layer < model.num_layers(); ++layer) {
      const bool full = pattern.is_full(layer);
      const auto output =
          runner.run_layer(layer, hidden, full ? at::Tensor() : read_[pattern.source(layer)]);
      read_.push_back(full ? output.own_set : read_[pattern.source(layer)]);
      hidden = output.hidden;
    }
  }

  // The loss where layer `layer` gives (1 - step) of its own core attention and `step` of that over
  // `source`'s set.
  double loss_moved(int layer, int source, double step) {
    const at::NoGradGuard no_grad;
    return loss([&](int at, const Attention& attention) {
             const auto own = attention(read_[at]);
             return at == layer ? own + step * (attention(read_[source]) - own) : own;
           })
        .item<double>();
  }

  // E[layer][source] of this sequence.
  std::vector<std::vector<double>> increases(const Pattern& pattern) {
    std::vector<at::Tensor> cores;
    std::vector<std::vector<at::Tensor>> changes;
    loss([&](int, const Attention& attention) {
      const auto own = attention(read_[cores.size()]);
      changes.emplace_back();
      for (std::size_t source = 0; source < cores.size(); ++source) {
        changes.back().push_back((attention(read_[source]) - own).detach());
      }
      cores.push_back(own.detach().requires_grad_());
      return cores.back() + own - own.detach();  // a leaf, and what is before it
    }).backward();
    const double n = static_cast<double>(scored_count());
    std::vector<std::vector<double>> matrix;
    for (std::size_t layer = 0; layer < cores.size(); ++layer) {
      matrix.emplace_back(layer, 0.0);
      for (std::size_t source = 0; source < layer; ++source) {
        if (!pattern.is_full(static_cast<int>(source))) continue;
        const auto change = (cores[layer].grad() * changes[layer][source]).sum(-1);
        matrix[layer][source] =
            change.sum().item<double>() + n / 2 * change.square().sum().item<double>();
      }
    }
    return matrix;
  }

  std::int64_t scored_count() const {
    return sequence_.scored.empty() ? num_tokens_ : std::ssize(sequence_.scored);
  }

 private:
  using Attention = std::function<at::Tensor(const at::Tensor& index_set)>;  // -> [T, h * v]
  using Attend = std::function<at::Tensor(int layer, const Attention& attention)>;

  at::Tensor loss(const Attend& attend) {
    const auto& weights = model_.weights();
    const auto rope = make_rope_table(rope_frequencies(model_.config()), 0, num_tokens_);
    auto hidden = at::embedding(wide(weights.embedding),
                                ids(sequence_.tokens, 0, sequence_.tokens.size() - 1));
    hidden.requires_grad_();
    for (int layer = 0; layer < model_.num_layers(); ++layer) {
      const auto block = wide(weights.blocks[layer]);
      const auto x = rms_norm(hidden, block.input_norm, shape_.rms_norm_eps);
      const auto [q, k, v] =
          mla_expand(mla_project(x, block.mla, shape_.mla, rope), block.mla, shape_.mla);
      const auto attended = attend(layer, [&, q = q, k = k, v = v](const at::Tensor& index_set) {
        return attention_over(q, k, v, index_set);
      });
      const auto residual = hidden + at::linear(attended, block.mla.o_proj);
      hidden = residual +
               feed_forward(rms_norm(residual, block.post_attention_norm, shape_.rms_norm_eps),
                            block, shape_);
    }
    auto targets = ids(sequence_.tokens, 1, sequence_.tokens.size());
    if (!sequence_.scored.empty()) {
      const auto positions = ids(sequence_.scored, 0, sequence_.scored.size());
      hidden = hidden.index_select(0, positions);
      targets = targets.index_select(0, positions);
    }
    const auto normed = rms_norm(hidden, wide(weights.final_norm), shape_.rms_norm_eps);
    return at::cross_entropy_loss(at::linear(normed, wide(weights.head)), targets);
  }

  // Plain masked attention, which autograd differentiates by itself.
  at::Tensor attention_over(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& index_set) const {
    auto visible = at::zeros({num_tokens_, num_tokens_ + 1}, at::kBool);
    const auto set = index_set.to(at::kLong);
    visible.scatter_(1, at::where(set < 0, num_tokens_, set), true);
    const auto hidden_keys = visible.narrow(1, 0, num_tokens_).logical_not();
    const auto logits = at::matmul(q.transpose(0, 1), k.permute({1, 2, 0})) *
                        shape_.mla.softmax_scale;  // [h, T, T]
    const auto mass = at::softmax(logits.masked_fill(hidden_keys, -INFINITY), -1);
    return at::matmul(mass, v.transpose(0, 1)).transpose(0, 1).flatten(1);
  }

  const Model& model_;
  const Sequence& sequence_;
  const std::int64_t num_tokens_;
  const BlockShape shape_;
  std::vector<at::Tensor> read_;
};

class LossIncreases : public ::testing::Test {
 protected:
  const testing::TemporaryFolder folder_;
  const Model model_ = testing::random_model(folder_.path(), kVocabulary);
};

void expect_close(double found, double expected, const std::string& where) {
  EXPECT_NEAR(found, expected, 2e-3 * std::abs(expected) + 2e-5) << where;
}

// Against one graph of the whole model in double: sequences of several chunks and of one, with all
// tokens scored and with a few, under patterns with and without Shared layers.
TEST_F(LossIncreases, AreTheDefinition) {
  const std::vector<Sequence> sequences = {random_sequence(1100), random_sequence(40, {17, 38, 39}),
                                           random_sequence(60)};
  for (const char* text : {"FFFF", "-1,-1,0,1", "FSFS"}) {
    const auto pattern = Pattern::parse(text, 4);
    IncreaseMatrix expected = {{}, {0}, {0, 0}, {0, 0, 0}};
    for (const auto& sequence : sequences) {
      const auto one = WholeGraph(model_, pattern, sequence).increases(pattern);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < i; ++j) expected[i][j] += one[i][j] / std::ssize(sequences);
      }
    }
    const auto increases = estimate_increases(model_, pattern, sequences);
    ASSERT_EQ(increases.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      ASSERT_EQ(increases[i].size(), static_cast<std::size_t>(i));
      for (int j = 0; j < i; ++j) {
        const auto where = fmt::format("{}: layer {} reads {}", text, i, j);
        if (!pattern.is_full(j) || pattern.source(i) == j) {
          EXPECT_EQ(increases[i][j], 0) << where;  // cannot be read, or is read already
        } else {
          EXPECT_GT(std::abs(expected[i][j]), 1e-3) << where;  // or nothing would be shown
          expect_close(increases[i][j], expected[i][j], where);
        }
      }
    }
  }
}

// Without autograd. The loss of a sequence whose attention output in one layer moves a step towards
// that over another set: its slope is E's first term. One scored token alone and a change at one
// token alone make the second term the square of the slope, halved.
TEST_F(LossIncreases, FirstOrderIsTheSlopeOfTheLossTowardsTheSwap) {
  const auto sequence = random_sequence(24, {23});
  const auto pattern = Pattern::full(4);
  const auto increases = estimate_increases(model_, pattern, {sequence});
  WholeGraph graph(model_, pattern, sequence);
  constexpr double kStep = 1e-5;
  const int last = 3;  // its attention at other tokens than the last reaches no scored one
  for (int source = 0; source < last; ++source) {
    const double slope =
        (graph.loss_moved(last, source, kStep) - graph.loss_moved(last, source, -kStep)) /
        (2 * kStep);
    EXPECT_GT(std::abs(slope), 1e-3);
    expect_close(increases[last][source], slope + slope * slope / 2,
                 fmt::format("source {}", source));
  }
}

TEST_F(LossIncreases, HaveTheSameBitsOnAnyNumberOfThreads) {
  const std::vector<Sequence> sequences = {random_sequence(60), random_sequence(50),
                                           random_sequence(40)};
  const auto one = estimate_increases(model_, Pattern::full(4), sequences, 1);
  std::vector<int> told;
  const auto three = estimate_increases(model_, Pattern::full(4), sequences, 3, nullptr,
                                        [&](int done) { told.push_back(done); });
  EXPECT_EQ(one, three);
  EXPECT_THAT(told, ElementsAre(1, 2, 3));
}

// A killed screening goes on with the sequences that its journal lacks.
TEST_F(LossIncreases, AreTakenFromTheJournal) {
  const std::vector<Sequence> sequences = {random_sequence(60), random_sequence(50),
                                           random_sequence(40)};
  const auto path = folder_.path() / "journal";
  SearchSetup setup;
  setup.num_layers = 4;
  setup.start = Pattern::full(4);
  const auto whole = estimate_increases(model_, Pattern::full(4), sequences);
  const IncreaseMatrix known = {{}, {300}, {300, 300}, {300, 300, 300}};
  {
    Journal journal(path, setup);
    journal.append_increases(1, known);
  }
  const auto with = [&](std::vector<int> expected_done) {
    Journal journal(path, setup);
    std::vector<int> told;
    const auto increases = estimate_increases(model_, Pattern::full(4), sequences, 1, &journal,
                                              [&](int done) { told.push_back(done); });
    EXPECT_EQ(told, expected_done);
    return increases;
  };
  const auto resumed = with({2, 3});
  EXPECT_EQ(resumed, with({}));
  for (int i = 1; i < 4; ++i) {
    for (int j = 0; j < i; ++j) EXPECT_NEAR(resumed[i][j] - whole[i][j], 100, 10);
  }
}

TEST_F(LossIncreases, NeedAQueryThatSelectsAndThePatternsIndexers) {
  EXPECT_EQ(testing::thrown<InputError>(
                [&] { estimate_increases(model_, Pattern::full(4), {random_sequence(7)}); }),
            "screening: context: expected at least index_topk = 8 tokens, found 7");
  const auto folder =
      std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "tests/golden/models/glm_mixed";
  const Model mixed = Model::load(Checkpoint::open(folder), {});
  EXPECT_THAT(testing::thrown<InputError>([&] {
                estimate_increases(mixed, Pattern::full(mixed.num_layers()), {random_sequence(60)});
              }),
              HasSubstr("indexer weights"));
}

TEST(ScreeningRuns, CountTheGradientAsTwoAndEveryOtherSet) {
  const auto full = screening_runs(Pattern::full(4));
  EXPECT_EQ(full.layers, 4 + 3 * 3);
  EXPECT_EQ(full.attentions, 3 + 6);
  // Layers 1, 2 and 3 compare with: none but their own; 0, 2's own; 0 and 2, of which 3 reads 2.
  const auto shared = screening_runs(Pattern::parse("FSFS", 4));
  EXPECT_EQ(shared.layers, 13);
  EXPECT_EQ(shared.attentions, 3 + 0 + 1 + 1);
  EXPECT_EQ(screening_runs(Pattern::full(1)).layers, 1);
}

}  // namespace
}  // namespace indexcache
