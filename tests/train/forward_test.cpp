#include "indexcache/train/forward.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/model/model.h"
#include "indexcache/train/export.h"
#include "indexcache/train/parameters.h"
#include "train/tiny_run.h"

namespace indexcache {
namespace {

using testing::TemporaryFolder;
using testing::tiny_run_json;
using testing::tiny_stage;

struct TinyModel {
  explicit TinyModel(nlohmann::json json)
      : config(parse_run_config(json, "test")),
        parameters(list_parameters(
            config.model,
            std::vector<bool>(static_cast<std::size_t>(config.model.num_layers), true), weights)) {
    initialize(parameters, config.model.num_layers, 0.1, 5, at::kCPU);
  }

  // Requires gradients everywhere but in the selection bias.
  void track() {
    for (const auto& parameter : parameters) {
      parameter.tensor->requires_grad_(parameter.part != ParameterPart::kSelectionBias);
    }
  }

  TrainingForward forward(StageKind kind, const TrainingBatch& batch) const {
    return training_forward(weights, block_shape(config.model, {}), rope_frequencies(config.model),
                            batch, kind, config.pattern, config.index_loss);
  }

  RunConfig config;
  ModelWeights weights;
  std::vector<Parameter> parameters;
};

TrainingBatch random_batch(const ModelConfig& model, std::int64_t sequences, std::int64_t context) {
  return {.inputs = at::randint(model.vocab_size, {sequences, context}, at::kLong),
          .targets = at::randint(model.vocab_size, {sequences, context}, at::kLong),
          .weights = at::full({sequences, context}, 1.0 / static_cast<double>(sequences * context)),
          .answers = at::zeros({sequences, context}, at::kBool)};
}

nlohmann::json run_json() { return tiny_run_json({tiny_stage("lm", 1e-2, 500)}); }

// The trainer's sparse stage computes what the model, exported and loaded, computes by its own
// path: absorbed attention over index sets, its own or another layer's.
TEST(TrainingForward, SparseStageIsTheModelThatInferenceRuns) {
  for (const char* pattern : {"FFFF", "FSFS", "-1,-1,0,1"}) {
    at::manual_seed(1);
    auto json = testing::tiny_four_layers(run_json());
    json["pattern"] = pattern;
    TinyModel tiny(json);
    for (auto& parameter : tiny.parameters) {  // what bf16 files keep
      if (parameter.storage != ParameterStorage::kFp32) {
        *parameter.tensor = parameter.tensor->to(at::kBFloat16).to(at::kFloat);
      }
    }
    TemporaryFolder folder;
    export_model(folder.path() / "model", tiny.config, tiny.parameters, {});
    const auto checkpoint = Checkpoint::open(folder.path() / "model");
    const auto model = Model::load(checkpoint, {});
    EXPECT_EQ(model.config().schedule, tiny.config.pattern);

    constexpr std::int64_t kContext = 96;  // six times the top k
    const auto batch = random_batch(tiny.config.model, 1, kContext);
    const auto trained = tiny.forward(StageKind::kSparse, batch);
    auto cache = model.make_cache(tiny.config.pattern, kContext);
    const auto hidden = model.forward(batch.inputs[0], cache);
    const auto losses = model.token_losses(hidden, batch.targets[0]);
    EXPECT_LT((losses - trained.token_losses).abs().max().item<float>(), 1e-3f) << pattern;

    const auto dense = tiny.forward(StageKind::kLanguageModel, batch);
    EXPECT_GT((dense.token_losses - trained.token_losses).abs().max().item<float>(), 1e-2f);
    tiny.config.pattern = Pattern::full(4);
    if (std::string(pattern) != "FFFF") {
      const auto full = tiny.forward(StageKind::kSparse, batch);
      EXPECT_GT((full.token_losses - trained.token_losses).abs().max().item<float>(), 1e-2f);
    }
  }
}

std::vector<at::Tensor> indexer_gradients(const nlohmann::json& json, StageKind kind) {
  at::manual_seed(6);
  TinyModel tiny(json);
  tiny.track();
  const auto batch = random_batch(tiny.config.model, 2, 48);
  const auto forward = tiny.forward(kind, batch);
  EXPECT_EQ(forward.kl.size(), static_cast<std::size_t>(tiny.config.pattern.num_full()));
  forward.loss.backward();
  std::vector<at::Tensor> gradients;
  for (const auto& parameter : tiny.parameters) {
    if (parameter.part != ParameterPart::kIndexer) continue;
    const auto& gradient = parameter.tensor->grad();
    EXPECT_EQ(gradient.defined(), tiny.config.pattern.is_full(parameter.layer)) << parameter.name;
    if (gradient.defined()) gradients.push_back(gradient.clone());
  }
  return gradients;
}

double largest_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  EXPECT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>());
  }
  return largest;
}

// Both forms, nearest and routed: the two cross-layer losses move the kept indexers alike, DSA's own
// loss moves them elsewhere, and a Shared layer's indexer is not touched.
TEST(TrainingForward, KeptIndexersLearnFromTheirReaders) {
  for (const char* pattern : {"FSSS", "FFSS", "-1,-1,0,1"}) {
    for (const auto kind :
         {StageKind::kIndexerWarmup, StageKind::kSparse, StageKind::kSparseIndexer}) {
      auto json = testing::tiny_four_layers(run_json());
      json["pattern"] = pattern;
      json["index_loss"] = "multi";
      const auto multi = indexer_gradients(json, kind);
      json["index_loss"] = "average";
      const auto average = indexer_gradients(json, kind);
      json["index_loss"] = "own";
      const auto own = indexer_gradients(json, kind);
      double scale = 0;
      for (const auto& gradient : multi) {
        scale = std::max(scale, gradient.abs().max().item<double>());
      }
      EXPECT_GT(scale, 0);
      EXPECT_LT(largest_difference(multi, average), 1e-4 * scale) << pattern;
      EXPECT_GT(largest_difference(multi, own), 1e-2 * scale) << pattern;
    }
  }
}

// Parts of a step, weighted by their shares, add up to it: what data-parallel processes do.
TEST(TrainingForward, SharesAddUpToTheStep) {
  at::manual_seed(7);
  auto json = testing::tiny_four_layers(run_json());
  json["pattern"] = "FSFS";
  const TinyModel tiny(json);
  const auto batch = random_batch(tiny.config.model, 3, 48);
  const auto whole = tiny.forward(StageKind::kSparse, batch).loss;
  at::Tensor sum = at::zeros({});
  for (const int first : {0, 1}) {
    const int count = first + 1;
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, count); };
    sum = sum + tiny.forward(StageKind::kSparse, {.inputs = part(batch.inputs),
                                                  .targets = part(batch.targets),
                                                  .weights = part(batch.weights),
                                                  .answers = part(batch.answers),
                                                  .share = count / 3.0})
                    .loss;
  }
  EXPECT_NEAR(sum.item<double>(), whole.item<double>(), 1e-4);
}

TEST(TrainingForward, SparseIsDenseUpToTheTopK) {
  at::manual_seed(2);
  const TinyModel tiny(run_json());
  const auto batch = random_batch(tiny.config.model, 3, tiny.config.model.index_topk);
  const auto sparse = tiny.forward(StageKind::kSparse, batch);
  const auto dense = tiny.forward(StageKind::kLanguageModel, batch);
  EXPECT_LT((dense.token_losses - sparse.token_losses).abs().max().item<float>(), 1e-4f);
}

// Which parameters learn in which stage, read off their gradients.
TEST(TrainingForward, StagesTrainWhatTheySay) {
  at::manual_seed(3);
  for (const auto kind : {StageKind::kLanguageModel, StageKind::kIndexerWarmup, StageKind::kSparse,
                          StageKind::kSparseIndexer}) {
    TinyModel tiny(run_json());
    tiny.track();
    const auto forward = tiny.forward(kind, random_batch(tiny.config.model, 2, 64));
    forward.loss.backward();
    for (const auto& parameter : tiny.parameters) {
      if (parameter.part == ParameterPart::kSelectionBias) continue;
      const auto& gradient = parameter.tensor->grad();
      const bool learns = gradient.defined() && gradient.abs().max().item<float>() > 0;
      const bool expected = parameter.part == ParameterPart::kIndexer
                                ? kind != StageKind::kLanguageModel
                                : kind == StageKind::kLanguageModel || kind == StageKind::kSparse;
      EXPECT_EQ(learns, expected) << parameter.name << " in " << stage_name(kind);
    }
    EXPECT_EQ(forward.kl.size(), kind == StageKind::kLanguageModel ? 0u : 2u);
    ASSERT_EQ(forward.expert_loads.size(), 2u);
    EXPECT_FALSE(forward.expert_loads[0].defined());
    EXPECT_EQ(forward.expert_loads[1].sum().item<std::int64_t>(), 2 * 64 * 2);
  }
}

// The model's gradient in the sparse stage is that of the language model's loss alone.
TEST(TrainingForward, IndexersDoNotMoveTheModel) {
  at::manual_seed(4);
  const auto gradient = [](double indexer_scale) {
    TinyModel tiny(run_json());
    at::manual_seed(5);
    const auto batch = random_batch(tiny.config.model, 2, 16);  // all keys selected
    for (auto& parameter : tiny.parameters) {
      if (parameter.part == ParameterPart::kIndexer) parameter.tensor->mul_(indexer_scale);
    }
    tiny.track();
    tiny.forward(StageKind::kSparse, batch).loss.backward();
    return tiny.weights.blocks[0].mla.q_a_proj.grad().clone();
  };
  EXPECT_TRUE(gradient(1).equal(gradient(3)));
}

TEST(Parameters, InitialisationIsTheRecipes) {
  const TinyModel tiny(run_json());
  const auto deviation = [](const at::Tensor& x) { return x.std().item<double>(); };
  const auto& block = tiny.weights.blocks[0];
  EXPECT_NEAR(deviation(block.mla.q_b_proj), 0.1, 0.003);
  EXPECT_NEAR(deviation(block.mla.o_proj), 0.05, 0.002);  // 0.1 / sqrt(2 * 2 layers)
  EXPECT_EQ(block.input_norm.min().item<float>(), 1);
  EXPECT_EQ(block.input_norm.max().item<float>(), 1);
}

// What the repository can hold: the bundled model with its tokenizer in 31 MB.
TEST(Parameters, BundledModelIsSmallEnough) {
  const auto config =
      read_run_config(std::filesystem::path(INDEXCACHE_SOURCE_DIR) / "models" / "small-dsa.json");
  ModelWeights weights;
  std::int64_t bytes = 0, names = 0;
  for (const auto& parameter : list_parameters(
           config.model, std::vector<bool>(config.model.mlp_kinds.size(), true), weights)) {
    std::int64_t count = 1;
    for (const auto size : parameter.shape) count *= size;
    const bool fp8 = parameter.storage == ParameterStorage::kFp8;
    bytes += fp8 ? count + count / (128 * 128) * 4 : 2 * count;
    // Names and offsets in the headers and the index, stacked experts one by one.
    const auto tensors = parameter.shape.size() == 3 ? 2 * parameter.shape[0] : 1;
    names += (fp8 ? 2 : 1) * tensors * 250;
  }
  constexpr std::int64_t kTokenizer = 700'000;
  EXPECT_LE(bytes + names + kTokenizer, 31'000'000);
}

}  // namespace
}  // namespace indexcache
