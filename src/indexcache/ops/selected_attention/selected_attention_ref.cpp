#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "indexcache/ops/selected_attention/selected_attention_params.h"

namespace indexcache {
namespace {

double dot(const double* a, const double* b, std::int64_t length) {
  double sum = 0;
  for (std::int64_t i = 0; i < length; ++i) sum += a[i] * b[i];
  return sum;
}

// p[b, h, t, :]: 0 where not visible.
std::vector<double> probabilities(const SelectedAttentionParams& p, std::int64_t b, std::int64_t h,
                                  std::int64_t t) {
  const double* q = p.q + ((b * p.num_heads + h) * p.num_queries + t) * p.dim;
  const double* k = p.k + (b * p.num_heads + h) * p.num_keys * p.dim;
  const bool* visible = p.visible + (b * p.num_queries + t) * p.num_keys;
  double max = -std::numeric_limits<double>::infinity();
  for (std::int64_t s = 0; s < p.num_keys; ++s) {
    if (visible[s]) max = std::max(max, p.scale * dot(q, k + s * p.dim, p.dim));
  }
  std::vector<double> row(p.num_keys, 0.0);
  double sum = 0;
  for (std::int64_t s = 0; s < p.num_keys; ++s) {
    if (!visible[s]) continue;
    row[s] = std::exp(p.scale * dot(q, k + s * p.dim, p.dim) - max);
    sum += row[s];
  }
  for (double& probability : row) probability /= sum;
  return row;
}

// One query of one head: its part of every gradient.
void backward(const SelectedAttentionParams& p, const SelectedAttentionGradParams& grad,
              std::int64_t b, std::int64_t h, std::int64_t t) {
  const std::int64_t head = b * p.num_heads + h, query = head * p.num_queries + t;
  const double* grad_out = grad.grad_out + query * p.value_dim;
  const auto row = probabilities(p, b, h, t);
  std::vector<double> grad_p(p.num_keys);
  for (std::int64_t s = 0; s < p.num_keys; ++s) {
    grad_p[s] = dot(grad_out, p.v + (head * p.num_keys + s) * p.value_dim, p.value_dim);
  }
  const double mean = dot(row.data(), grad_p.data(), p.num_keys);
  for (std::int64_t s = 0; s < p.num_keys; ++s) {
    const std::int64_t key = head * p.num_keys + s;
    const double grad_logit = row[s] * (grad_p[s] - mean);  // the derivative of a softmax
    for (std::int64_t d = 0; d < p.dim; ++d) {
      grad.grad_q[query * p.dim + d] += p.scale * grad_logit * p.k[key * p.dim + d];
      grad.grad_k[key * p.dim + d] += p.scale * grad_logit * p.q[query * p.dim + d];
    }
    for (std::int64_t d = 0; d < p.value_dim; ++d) {
      grad.grad_v[key * p.value_dim + d] += row[s] * grad_out[d];
    }
  }
}

}  // namespace

void selected_attention_ref(const SelectedAttentionParams& p, double* out, double* mass) {
  std::fill_n(out, p.batch * p.num_heads * p.num_queries * p.value_dim, 0.0);
  std::fill_n(mass, p.batch * p.num_queries * p.num_keys, 0.0);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.num_heads; ++h) {
      for (std::int64_t t = 0; t < p.num_queries; ++t) {
        const auto row = probabilities(p, b, h, t);
        const std::int64_t head = b * p.num_heads + h;
        for (std::int64_t s = 0; s < p.num_keys; ++s) {
          const double* value = p.v + (head * p.num_keys + s) * p.value_dim;
          double* out_row = out + (head * p.num_queries + t) * p.value_dim;
          for (std::int64_t d = 0; d < p.value_dim; ++d) out_row[d] += row[s] * value[d];
          mass[(b * p.num_queries + t) * p.num_keys + s] +=
              row[s] / static_cast<double>(p.num_heads);
        }
      }
    }
  }
}

void selected_attention_backward_ref(const SelectedAttentionParams& p,
                                     const SelectedAttentionGradParams& grad) {
  std::fill_n(grad.grad_q, p.batch * p.num_heads * p.num_queries * p.dim, 0.0);
  std::fill_n(grad.grad_k, p.batch * p.num_heads * p.num_keys * p.dim, 0.0);
  std::fill_n(grad.grad_v, p.batch * p.num_heads * p.num_keys * p.value_dim, 0.0);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.num_heads; ++h) {
      for (std::int64_t t = 0; t < p.num_queries; ++t) backward(p, grad, b, h, t);
    }
  }
}

}  // namespace indexcache
