// index_kl: how far a chunk of queries' index scores are from the attention they should predict,
// with the gradient by hand.
//
//   I[b, t, s] = sum_h weights[b, t, h] * relu(q[b, t, h] . keys[b, s])       model spec 2.4
//   kl[b, t]   = sum over the visible s of p[b, t, s] * (log p[b, t, s] - log softmax_s(I)[b, t,
//   s])
//
// p is the attention mass (ops/selected_attention), a constant. The dense form of the indexer's
// loss makes all earlier keys visible, the sparse form the index set. 0 log 0 = 0. With
// dI = softmax(I) - p the gradients of sum_{b, t} kl follow through the two products and the relu;
// value and gradients come out of one pass, because both need the same [B, M, H, N] scores.
// A chunk takes B * M * H * N elements: cut a sequence into chunks of queries and memory is linear
// in the context.
#pragma once

#include <ATen/core/Tensor.h>

namespace indexcache {

struct IndexKl {
  at::Tensor kl;            // [B, M] fp32 (double for double inputs)
  at::Tensor grad_q;        // [B, M, H, D], dtype of q
  at::Tensor grad_keys;     // [B, N, D], dtype of keys
  at::Tensor grad_weights;  // [B, M, H], dtype of weights
};

// mass     [B, M, N]     fp32; rows sum to 1, 0 where not visible
// q        [B, M, H, D]  fp32, bf16 or double
// keys     [B, N, D]     dtype of q
// weights  [B, M, H]     fp32 (double for double inputs), scaled as indexer_project does
// visible  [B or 1, M, N] bool; every query must see at least one key
IndexKl index_kl(const at::Tensor& mass, const at::Tensor& q, const at::Tensor& keys,
                 const at::Tensor& weights, const at::Tensor& visible);

}  // namespace indexcache
