// A checkpoint's tensors as the structs that the layers take.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/layers/block.h"

namespace indexcache {

// The weights alone: what the trainer optimises and the forward pass reads.
struct ModelWeights {
  at::Tensor embedding;  // [vocab, hidden]
  std::vector<BlockWeights> blocks;
  at::Tensor final_norm;  // [hidden]
  at::Tensor head;        // [vocab, hidden]; the embedding itself if tied
};

struct WeightOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;  // fp32 or bf16; the router, its bias and the indexer's norm
                                      // and weights_proj stay fp32
};

// Indexers are loaded where they are stored, except in layers that the checkpoint's own schedule
// makes Shared (there they are unused leftovers; checkpoint.h). Throws InputError for what is
// missing or misshapen.
ModelWeights load_weights(const Checkpoint& checkpoint, const WeightOptions& options);

}  // namespace indexcache
