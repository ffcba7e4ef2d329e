// What index sharing and sparse attention must never change: the model's invariants on the golden
// checkpoints.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <c10/core/InferenceMode.h>

#include <fstream>
#include <functional>
#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/layers/norm.h"
#include "model/golden.h"
#include "support/temporary_folder.h"

namespace indexcache::testing {
namespace {

constexpr std::int64_t kWhole = 4096;

Model load(const std::filesystem::path& folder, at::ScalarType dtype = at::kFloat) {
  return Model::load(Checkpoint::open(folder), {.dtype = dtype, .latent_norm_eps = {}});
}

// A golden's folder with one change to its config.json.
Model load_changed(const std::string& golden,
                   const std::function<void(nlohmann::json& config)>& change,
                   at::ScalarType dtype = at::kFloat) {
  const TemporaryFolder copy;
  std::filesystem::copy(golden_folder() / golden, copy.path());
  auto config = nlohmann::json::parse(read_file(copy.path() / "config.json"));
  change(config);
  copy.write("config.json", config.dump());
  return load(copy.path(), dtype);
}

// Multi-head latent attention over all earlier tokens, written down from the model spec (2.3,
// expanded form) without the ops.
at::Tensor dense_attention(const at::Tensor& x, const MlaWeights& weights, const MlaShape& shape,
                           const RopeTable& rope) {
  const auto expanded = mla_expand(mla_project(x, weights, shape, rope), weights, shape);
  auto scores = at::einsum("thd,shd->hts", {expanded.q, expanded.k}) * shape.softmax_scale;
  const auto causal = at::ones({x.size(0), x.size(0)}, at::kBool).tril();
  scores = scores.masked_fill(~causal, -std::numeric_limits<double>::infinity());
  const auto attended = at::einsum("hts,shd->thd", {scores.softmax(-1), expanded.v});
  return at::linear(attended.flatten(1), weights.o_proj);
}

// Logits of the model with dense attention in every layer.
at::Tensor dense_logits(const Model& model, const at::Tensor& tokens) {
  const c10::InferenceMode guard;
  const auto shape = block_shape(model.config(), {});
  const auto rope = make_rope_table(rope_frequencies(model.config()), 0, tokens.size(0));
  auto hidden = model.embed(tokens);
  for (const auto& block : model.weights().blocks) {
    const auto x = rms_norm(hidden, block.input_norm, shape.rms_norm_eps);
    hidden = hidden + dense_attention(x, block.mla, shape.mla, rope);
    hidden = hidden + feed_forward(rms_norm(hidden, block.post_attention_norm, shape.rms_norm_eps),
                                   block, shape);
  }
  return model.logits(hidden);
}

// All earlier positions of each of T queries, -1 padded: [T, T] int32.
at::Tensor causal_set(std::int64_t num_tokens) {
  const auto positions = at::arange(num_tokens, at::kInt);
  const auto rows = positions.unsqueeze(0).expand({num_tokens, num_tokens});
  return at::where(rows <= positions.unsqueeze(1), rows, -1).contiguous();
}

// Walks the layers with an index set for every layer from `set_of`; undefined: the layer runs its
// own indexer and the set goes to `own_sets`.
at::Tensor walk(const Model& model, const at::Tensor& tokens,
                const std::function<at::Tensor(int layer)>& set_of,
                std::vector<IndexSet>& own_sets) {
  own_sets.assign(model.num_layers(), {});
  auto hidden = model.embed(tokens);
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    const auto set = set_of(layer);
    auto cache = model.make_layer_cache(set.defined() ? LayerRole::kShared : LayerRole::kFull,
                                        tokens.size(0));
    hidden = model.run_layer(layer, hidden, 0, cache, set, &own_sets[layer]);
  }
  return hidden;
}

// T1 and T3: with k >= the context, sparse attention is dense attention.
TEST(Reuse, TopKBeyondTheContextIsDenseAttention) {
  for (const std::string golden : {"glm_full", "deepseek_yarn", "deepseek_interleaved"}) {
    SCOPED_TRACE(golden);
    const auto expected = read_golden(golden).at(0);
    const auto tokens = expected.tokens;
    const auto model = load_changed(golden, [](auto& config) { config["index_topk"] = 512; });
    const auto sparse = run_model(model, Pattern::full(model.num_layers()), tokens, kWhole);

    // The same bits as attention over every earlier token, whatever the indexer says ...
    std::vector<IndexSet> own_sets;
    const auto all = causal_set(tokens.size(0));
    EXPECT_TRUE(sparse.hidden.equal(walk(
        model, tokens, [&](int) { return all; }, own_sets)));
    for (const auto& [layer, set] : sparse.index_sets) {
      EXPECT_TRUE(set.narrow(1, 0, tokens.size(0)).equal(all)) << "layer " << layer;
    }
    // ... and, to rounding, the same as the expanded form by plain matrix products.
    const auto dense = dense_logits(model, tokens);
    EXPECT_LE(largest_difference(sparse.logits, dense), 1e-5 * dense.abs().max().item().toDouble());
    // The golden's own k is below the context, and that shows.
    EXPECT_GT(largest_difference(expected.logits, dense), 0.1);
  }
}

// A layer's own k gives the set that the model with that k everywhere has there, up to the first
// layer that differs.
TEST(Reuse, EveryLayerMayKeepItsOwnNumberOfKeys) {
  const auto expected = read_golden("glm_full").at(0);
  const auto checkpoint = Checkpoint::open(expected.folder());
  const auto k = checkpoint.config().index_topk;
  const auto sets_under = [&](std::vector<std::int64_t> index_topk) {
    const auto model = Model::load(checkpoint, {.latent_norm_eps = {}, .index_topk = index_topk});
    return run_model(model, Pattern::full(4), expected.tokens, kWhole).index_sets;
  };
  const auto same = sets_under({k, k, k, k}), own = sets_under({k, 3, 2 * k, k});
  const auto config = [&](auto& json) { json["index_topk"] = 3; };
  const auto small =
      run_model(load_changed("glm_full", config), Pattern::full(4), expected.tokens, kWhole)
          .index_sets;
  for (const auto& [layer, set] : expected.index_sets) EXPECT_TRUE(set.equal(same.at(layer)));
  EXPECT_TRUE(own.at(0).equal(same.at(0)));
  EXPECT_EQ(own.at(1).size(1), 3);
  EXPECT_EQ(own.at(2).size(1), 2 * k);
  EXPECT_TRUE(sets_under({3, k, k, k}).at(0).equal(small.at(0)));
  const std::vector<std::vector<std::int64_t>> refused = {{k}, {k, k, 0, k}, {k, k, k, k, k}};
  for (const auto& wrong : refused) {
    EXPECT_THROW(sets_under(wrong), InputError);
  }
}

// T2: a wrong RoPE style in the indexer gives other index sets, so the goldens can tell.
TEST(Reuse, IndexerRopeStylesSelectDifferently) {
  for (const std::string golden :
       {"glm_full", "glm_half_split", "deepseek_interleaved", "deepseek_fp8_ue8m0"}) {
    SCOPED_TRACE(golden);
    const auto expected = read_golden(golden).at(0);
    const bool interleave = load(expected.folder()).config().indexer_rope_interleave;
    const auto model = load_changed(
        golden, [&](auto& config) { config["indexer_rope_interleave"] = !interleave; });
    const auto other = run_model(model, model.config().schedule, expected.tokens, kWhole);
    for (const auto& [layer, set] : expected.index_sets) {
      EXPECT_FALSE(set.equal(other.index_sets.at(layer))) << "layer " << layer;
    }
  }
}

TEST(Reuse, AllFullIsPlainSparseAttentionBitForBit) {
  const auto expected = read_golden("glm_full").at(0);
  const auto model = load(expected.folder());
  std::vector<IndexSet> own_sets;
  const auto plain = walk(
      model, expected.tokens, [](int) { return at::Tensor(); }, own_sets);
  for (const auto& text : {"full", "FFFF", "-1,-1,-1,-1", "uniform:1/1", "freq:1"}) {
    const auto pattern = Pattern::parse(text, model.num_layers());
    const auto outcome = run_model(model, pattern, expected.tokens, kWhole);
    EXPECT_TRUE(plain.equal(outcome.hidden)) << text;
    for (int layer = 0; layer < model.num_layers(); ++layer) {
      EXPECT_TRUE(own_sets[layer].indices().equal(outcome.index_sets.at(layer)))
          << text << ", " << layer;
    }
  }
}

TEST(Reuse, SharedLayerIsTheLayerFedTheCopiedSet) {
  const auto expected = read_golden("deepseek_yarn").at(0);
  const auto model = load(expected.folder());
  for (const auto& text : {"FSSS", "FFSS", "-1,-1,0,1", "-1,0,-1,0", "-1,-1,-1,0"}) {
    SCOPED_TRACE(text);
    const auto pattern = Pattern::parse(text, model.num_layers());
    const auto shared = run_model(model, pattern, expected.tokens, kWhole);
    std::vector<IndexSet> own_sets;
    const auto copy_of_source = [&](int layer) {
      return pattern.is_full(layer) ? at::Tensor()
                                    : own_sets[pattern.source(layer)].indices().clone();
    };
    EXPECT_TRUE(shared.hidden.equal(walk(model, expected.tokens, copy_of_source, own_sets)));
  }
}

// bf16 keeps 8 bits, so each rounding is off by up to 2^-9; a few dozen of them in a row, most of
// them independent, stay below 3 %. Near-tied keys and experts may fall the other way, which moves
// logits by far more: everything is selected here.
TEST(Reuse, Bf16StaysNearFp32) {
  for (const std::string golden :
       {"glm_full", "glm_mixed", "deepseek_yarn", "deepseek_fp8_ue8m0"}) {
    const auto tokens = read_golden(golden).at(0).tokens;
    const auto select_all = [](auto& config) {
      config["index_topk"] = 512;
      config["num_experts_per_tok"] = config["n_routed_experts"];
      config["topk_group"] = config["n_group"];
    };
    const auto exact = load_changed(golden, select_all);
    const auto rounded = load_changed(golden, select_all, at::kBFloat16);
    const auto pattern = exact.config().schedule;
    const auto expected = run_model(exact, pattern, tokens, kWhole).logits;
    for (const std::int64_t chunk : {kWhole, std::int64_t{16}}) {
      const auto difference = run_model(rounded, pattern, tokens, chunk).logits - expected;
      const double error = (difference.norm() / expected.norm()).item().toDouble();
      EXPECT_LE(error, 0.03) << golden << ", chunk " << chunk;
      EXPECT_GT(error, 0.0) << golden;
    }
  }
}

// In the first layer only rounding can move an index score: nearly all keys stay.
TEST(Reuse, Bf16SelectsNearlyTheSameKeys) {
  const auto expected = read_golden("glm_full").at(0);
  const auto model = load(expected.folder(), at::kBFloat16);
  const auto sets = run_model(model, model.config().schedule, expected.tokens, kWhole).index_sets;
  const auto same = (expected.index_sets.at(0).unsqueeze(2) == sets.at(0).unsqueeze(1)).any(2);
  EXPECT_GE(same.to(at::kFloat).mean().item().toDouble(), 0.97);
}

TEST(Reuse, PatternMayOnlyMakeLayersFullThatHaveAnIndexer) {
  const auto model = load(golden_folder() / "glm_mixed");
  EXPECT_THROW(model.make_cache(Pattern::full(model.num_layers()), 16), InputError);
  EXPECT_EQ(model.baseline(), model.config().schedule);
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    EXPECT_EQ(model.has_indexer(layer), model.config().schedule.is_full(layer));
  }
}

}  // namespace
}  // namespace indexcache::testing
