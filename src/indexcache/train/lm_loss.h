// The language model's loss straight from the last hidden states: the [tokens, vocabulary] logits
// exist for one chunk of tokens at a time.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

struct LmLoss {
  at::Tensor loss;          // sum of weights * token_losses, scalar; differentiable
  at::Tensor token_losses;  // [n] fp32: -log softmax(hidden head^T)[target]; a constant
};

// hidden [n, hidden] after the final norm, head [vocab, hidden] of its dtype, targets [n] int64,
// weights [n] fp32. The gradients are made in the forward pass, while the logits are there.
LmLoss lm_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
               const at::Tensor& weights);

}  // namespace indexcache
