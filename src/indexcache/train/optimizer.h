// AdamW over fp32 masters with gradients clipped by their global norm. No host synchronisation.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "indexcache/train/parameters.h"
#include "indexcache/train/run_config.h"

namespace indexcache {

struct LearningRates {
  double model = 0, indexer = 0;
};

class Optimizer {
 public:
  // `parameters` are those that the stage trains, their tensors defined; moments start at 0.
  Optimizer(const OptimizerConfig& config, std::vector<Parameter> parameters);

  const std::vector<Parameter>& parameters() const { return parameters_; }

  // gradients[i]: fp32, of parameters()[i]; scaled in place. The model's and the indexers' norms
  // are clipped apart, since their losses are. Returns the norms before clipping, root of the sum
  // of both squares: a scalar on the device.
  at::Tensor step(std::vector<at::Tensor> gradients, const LearningRates& rates);

  // What a resumed run needs: first and second moments in the order of parameters(), and the number
  // of steps, a scalar fp32 tensor.
  std::vector<at::Tensor>& first_moments() { return first_; }
  std::vector<at::Tensor>& second_moments() { return second_; }
  at::Tensor& steps() { return steps_; }

 private:
  // Indices of the parameters of a part; matrices, which decay, apart from vectors.
  struct Group {
    ParameterPart part;
    bool decays;
    std::vector<std::size_t> members;
  };

  OptimizerConfig config_;
  std::vector<Parameter> parameters_;
  std::vector<Group> groups_;
  std::vector<at::Tensor> first_, second_;
  at::Tensor steps_;
};

}  // namespace indexcache
