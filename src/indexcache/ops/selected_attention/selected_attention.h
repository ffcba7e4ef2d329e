// selected_attention: multi-head attention of a chunk of queries over the keys each of them sees,
// for training.
//
//   p[b, h, t, s] = softmax over the visible s of scale * q[b, h, t] . k[b, h, s]
//   out[b, h, t]  = sum_s p[b, h, t, s] v[b, h, s]
//   mass[b, t, s] = mean over h of p[b, h, t, s]          what the indexer is trained towards
//
// The dense-masked form in plain tensor algebra, CPU and CUDA: a chunk of M queries takes
// B * h * M * N elements, so callers that cut a sequence into chunks of queries use memory that is
// linear in the context. The backward pass computes p again.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

struct SelectedAttention {
  at::Tensor out;   // [B, h, M, dv], dtype of v
  at::Tensor mass;  // [B, M, N] fp32 (double for double inputs), 0 where not visible
};

// q [B, h, M, d], k [B, h, N, d], v [B, h, N, dv]: one dtype of fp32, bf16, double; any strides.
// visible [B or 1, M, N] bool; every query must see at least one key.
SelectedAttention selected_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& visible, double scale);

// The mass alone, [B, M, N].
at::Tensor attention_mass(const at::Tensor& q, const at::Tensor& k, const at::Tensor& visible,
                          double scale);

struct SelectedAttentionGrad {
  at::Tensor q, k, v;  // shapes and dtypes of the inputs
};
// The gradient through `out` (mass is a constant of the loss). out: what the forward pass gave.
SelectedAttentionGrad selected_attention_backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                  const at::Tensor& k, const at::Tensor& v,
                                                  const at::Tensor& out, const at::Tensor& visible,
                                                  double scale);

}  // namespace indexcache
