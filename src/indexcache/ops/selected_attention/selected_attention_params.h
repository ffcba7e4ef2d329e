// selected_attention: the arguments of the reference. Torch-free. Semantics in
// selected_attention.h.
#pragma once

#include <cstdint>

namespace indexcache {

struct SelectedAttentionParams {
  std::int64_t batch = 0;        // B
  std::int64_t num_heads = 0;    // h
  std::int64_t num_queries = 0;  // M
  std::int64_t num_keys = 0;     // N
  std::int64_t dim = 0;          // d
  std::int64_t value_dim = 0;    // dv
  double scale = 1;
  const double* q = nullptr;      // [B, h, M, d]
  const double* k = nullptr;      // [B, h, N, d]
  const double* v = nullptr;      // [B, h, N, dv]
  const bool* visible = nullptr;  // [B, M, N]
};

// The definition as scalar loops in double: out [B, h, M, dv], mass [B, M, N].
void selected_attention_ref(const SelectedAttentionParams& params, double* out, double* mass);

struct SelectedAttentionGradParams {
  const double* grad_out = nullptr;  // [B, h, M, dv]
  double* grad_q = nullptr;          // [B, h, M, d]
  double* grad_k = nullptr;          // [B, h, N, d]
  double* grad_v = nullptr;          // [B, h, N, dv]
};
// The gradient through out alone.
void selected_attention_backward_ref(const SelectedAttentionParams& params,
                                     const SelectedAttentionGradParams& grad);

}  // namespace indexcache
