#include "indexcache/train/training_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <optional>
#include <utility>
#include <variant>

#include "indexcache/base/error.h"
#include "indexcache/train/fake_fp8.h"

namespace indexcache {
namespace {

void check_indexers(const RunConfig& config, const ModelWeights& weights,
                    const std::string& where) {
  std::vector<int> missing;
  for (const int layer : config.pattern.full_layers()) {
    if (!weights.blocks[static_cast<std::size_t>(layer)].indexer) missing.push_back(layer);
  }
  if (!missing.empty()) {
    throw expectation_error(where, "an indexer in every Full layer of " + config.pattern.str(),
                            fmt::format("none in layer {}", fmt::join(missing, ", ")));
  }
}

// Element by element, so that pointers to the tensors of `to` stay good.
void assign(const ModelWeights& from, ModelWeights& to) {
  to.embedding = from.embedding;
  for (std::size_t layer = 0; layer < to.blocks.size(); ++layer) {
    to.blocks[layer] = from.blocks[layer];
  }
  to.final_norm = from.final_norm;
  to.head = from.head;
}

}  // namespace

TrainingWeights::TrainingWeights(const RunConfig& config, const Checkpoint* start,
                                 at::Device device)
    : config_(config) {
  std::vector<bool> has_indexer;
  std::optional<ModelWeights> loaded;
  if (start != nullptr) {
    loaded = load_weights(*start, {.device = device, .dtype = at::kFloat});
    check_indexers(config, *loaded, start->folder().string());
    for (const auto& block : loaded->blocks) has_indexer.push_back(block.indexer.has_value());
  } else {
    for (int layer = 0; layer < config.model.num_layers; ++layer) {
      has_indexer.push_back(config.pattern.is_full(layer));
    }
  }
  masters_ = list_parameters(config.model, has_indexer, master_weights_);
  copies_ = list_parameters(config.model, has_indexer, compute_weights_);
  if (loaded) {
    assign(*loaded, master_weights_);
  } else {
    initialize(masters_, config.model.num_layers,
               config.model.json.value("initializer_range", 0.02), config.seed, device);
  }
}

void TrainingWeights::begin_stage(const Stage& stage) {
  const at::NoGradGuard no_grad;
  fp8_ = stage.fp8;
  trained_.clear();
  for (std::size_t i = 0; i < masters_.size(); ++i) {
    auto& copy = *copies_[i].tensor;
    if (masters_[i].part == ParameterPart::kSelectionBias) {
      copy = *masters_[i].tensor;  // shared: updated in place, outside the gradient
      continue;
    }
    const auto dtype = compute_dtype(masters_[i].storage);
    const bool trained = trains(stage.kind, masters_[i]);
    if (!trained && dtype == at::kFloat && !rounds_to_fp8(i)) {
      copy = *masters_[i].tensor;
      continue;
    }
    copy = at::empty_like(*masters_[i].tensor, dtype);
    refresh(i);
    if (!trained) continue;
    copy.requires_grad_(true);
    trained_.push_back(i);
  }
}

std::vector<Parameter> TrainingWeights::trained() const {
  std::vector<Parameter> parameters;
  for (const auto i : trained_) parameters.push_back(masters_[i]);
  return parameters;
}

std::vector<at::Tensor> TrainingWeights::take_gradients() {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto i : trained_) {
    auto& gradient = copies_[i].tensor->mutable_grad();
    gradients.push_back(gradient.defined() ? gradient.to(at::kFloat)
                                           : at::zeros_like(*masters_[i].tensor));
    gradient.reset();
  }
  return gradients;
}

void TrainingWeights::refresh_trained() {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> copies, masters;
  for (const auto i : trained_) {
    if (rounds_to_fp8(i)) {
      refresh(i);
      continue;
    }
    copies.push_back(*copies_[i].tensor);
    masters.push_back(*masters_[i].tensor);
  }
  if (!copies.empty()) at::_foreach_copy_(copies, masters);
}

void TrainingWeights::balance_experts(const std::vector<at::Tensor>& loads) {
  const at::NoGradGuard no_grad;
  for (std::size_t layer = 0; layer < loads.size(); ++layer) {
    if (!loads[layer].defined()) continue;
    const auto load = loads[layer].to(at::kFloat);
    auto& bias = std::get<MoeWeights>(master_weights_.blocks[layer].mlp).selection_bias;
    bias.add_((load.mean() - load).sign_(), config_.expert_bias_rate);
  }
}

at::ScalarType TrainingWeights::compute_dtype(ParameterStorage storage) const {
  const bool low = storage == ParameterStorage::kBf16 || storage == ParameterStorage::kFp8;
  return low && config_.precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat;
}

bool TrainingWeights::trains(StageKind kind, const Parameter& parameter) const {
  switch (parameter.part) {
    case ParameterPart::kModel:
      return trains_model(kind);
    case ParameterPart::kIndexer:
      return trains_indexers(kind) && config_.pattern.is_full(parameter.layer);
    case ParameterPart::kSelectionBias:
      return false;
  }
  INDEXCACHE_ASSERT(false);
}

bool TrainingWeights::rounds_to_fp8(std::size_t parameter) const {
  return fp8_ == Fp8Training::kFakeQuantized &&
         masters_[parameter].storage == ParameterStorage::kFp8;
}

void TrainingWeights::refresh(std::size_t parameter) {
  const auto& master = *masters_[parameter].tensor;
  copies_[parameter].tensor->copy_(rounds_to_fp8(parameter) ? through_fp8(master) : master);
}

}  // namespace indexcache
