#include "indexcache/train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <utility>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

constexpr double kNormFloor = 1e-6;  // in the division by the norm

std::vector<at::Tensor> pick(const std::vector<at::Tensor>& all,
                             const std::vector<std::size_t>& members) {
  std::vector<at::Tensor> picked;
  for (const auto i : members) picked.push_back(all[i]);
  return picked;
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, std::vector<Parameter> parameters)
    : config_(config), parameters_(std::move(parameters)) {
  for (const auto part : {ParameterPart::kModel, ParameterPart::kIndexer}) {
    for (const bool decays : {true, false}) {
      Group group{part, decays, {}};
      for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (parameters_[i].part == part && parameters_[i].is_matrix() == decays) {
          group.members.push_back(i);
        }
      }
      if (!group.members.empty()) groups_.push_back(std::move(group));
    }
  }
  for (const auto& parameter : parameters_) {
    first_.push_back(at::zeros_like(*parameter.tensor));
    second_.push_back(at::zeros_like(*parameter.tensor));
  }
  INDEXCACHE_ASSERT(!parameters_.empty());
  steps_ = at::zeros({}, parameters_[0].tensor->options());
}

at::Tensor Optimizer::step(std::vector<at::Tensor> gradients, const LearningRates& rates) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> norms;
  for (const auto part : {ParameterPart::kModel, ParameterPart::kIndexer}) {
    std::vector<at::Tensor> own;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (parameters_[i].part == part) own.push_back(gradients[i]);
    }
    if (own.empty()) continue;
    norms.push_back(at::linalg_vector_norm(at::stack(at::_foreach_norm(own))));
    if (config_.clip > 0) {
      at::_foreach_mul_(own, (config_.clip / (norms.back() + kNormFloor)).clamp_max(1));
    }
  }

  steps_.add_(1);
  for (const auto& group : groups_) {
    std::vector<at::Tensor> masters;
    for (const auto i : group.members) masters.push_back(*parameters_[i].tensor);
    const std::vector<at::Tensor> steps(group.members.size(), steps_);
    at::_fused_adamw_(masters, pick(gradients, group.members), pick(first_, group.members),
                      pick(second_, group.members), {}, steps,
                      group.part == ParameterPart::kModel ? rates.model : rates.indexer,
                      config_.beta1, config_.beta2, group.decays ? config_.weight_decay : 0.0,
                      config_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
  return at::linalg_vector_norm(at::stack(norms));
}

}  // namespace indexcache
