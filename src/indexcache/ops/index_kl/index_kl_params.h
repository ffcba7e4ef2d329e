// index_kl: the arguments of the reference. Torch-free. Semantics in index_kl.h.
#pragma once

#include <cstdint>

namespace indexcache {

struct IndexKlParams {
  std::int64_t batch = 0;           // B
  std::int64_t num_queries = 0;     // M
  std::int64_t num_heads = 0;       // H
  std::int64_t head_dim = 0;        // D
  std::int64_t num_keys = 0;        // N
  const double* mass = nullptr;     // [B, M, N]
  const double* q = nullptr;        // [B, M, H, D]
  const double* keys = nullptr;     // [B, N, D]
  const double* weights = nullptr;  // [B, M, H]
  const bool* visible = nullptr;    // [B, M, N]
  double* kl = nullptr;             // [B, M]
  double* grad_q = nullptr;         // [B, M, H, D]
  double* grad_keys = nullptr;      // [B, N, D]
  double* grad_weights = nullptr;   // [B, M, H]
};

// The definition and the derivative of each of its terms, as scalar loops in double.
void index_kl_ref(const IndexKlParams& params);

}  // namespace indexcache
