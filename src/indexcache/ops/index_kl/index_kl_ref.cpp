#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "indexcache/ops/index_kl/index_kl_params.h"

namespace indexcache {
namespace {

double dot(const double* a, const double* b, std::int64_t length) {
  double sum = 0;
  for (std::int64_t i = 0; i < length; ++i) sum += a[i] * b[i];
  return sum;
}

// One query: its KL, and its part of every gradient.
void query(const IndexKlParams& p, std::int64_t b, std::int64_t t) {
  const std::int64_t row = b * p.num_queries + t;
  const double* q = p.q + row * p.num_heads * p.head_dim;
  const double* keys = p.keys + b * p.num_keys * p.head_dim;
  const double* weights = p.weights + row * p.num_heads;
  const double* mass = p.mass + row * p.num_keys;
  const bool* visible = p.visible + row * p.num_keys;

  std::vector<double> scores(p.num_keys, -std::numeric_limits<double>::infinity());
  for (std::int64_t s = 0; s < p.num_keys; ++s) {
    if (!visible[s]) continue;
    scores[s] = 0;
    for (std::int64_t h = 0; h < p.num_heads; ++h) {
      const double product = dot(q + h * p.head_dim, keys + s * p.head_dim, p.head_dim);
      scores[s] += weights[h] * std::max(product, 0.0);
    }
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - max);
  const double lse = max + std::log(sum);

  for (std::int64_t s = 0; s < p.num_keys; ++s) {
    if (!visible[s]) continue;
    if (mass[s] > 0) p.kl[row] += mass[s] * (std::log(mass[s]) - (scores[s] - lse));
    const double grad_score = std::exp(scores[s] - lse) - mass[s];
    for (std::int64_t h = 0; h < p.num_heads; ++h) {
      const double product = dot(q + h * p.head_dim, keys + s * p.head_dim, p.head_dim);
      if (product <= 0) continue;  // relu is 0 and flat
      p.grad_weights[row * p.num_heads + h] += grad_score * product;
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        const std::int64_t in_q = h * p.head_dim + d, in_keys = s * p.head_dim + d;
        p.grad_q[row * p.num_heads * p.head_dim + in_q] += grad_score * weights[h] * keys[in_keys];
        p.grad_keys[b * p.num_keys * p.head_dim + in_keys] += grad_score * weights[h] * q[in_q];
      }
    }
  }
}

}  // namespace

void index_kl_ref(const IndexKlParams& p) {
  const std::int64_t rows = p.batch * p.num_queries;
  std::fill_n(p.kl, rows, 0.0);
  std::fill_n(p.grad_q, rows * p.num_heads * p.head_dim, 0.0);
  std::fill_n(p.grad_keys, p.batch * p.num_keys * p.head_dim, 0.0);
  std::fill_n(p.grad_weights, rows * p.num_heads, 0.0);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t t = 0; t < p.num_queries; ++t) query(p, b, t);
  }
}

}  // namespace indexcache
