#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {
namespace {

void load_row(const void* data, SparseMlaDType dtype, std::int64_t offset, std::int64_t count,
              float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = dtype == SparseMlaDType::kFloat32
                 ? static_cast<const float*>(data)[offset + i]
                 : std::bit_cast<float>(
                       std::uint32_t{static_cast<const std::uint16_t*>(data)[offset + i]} << 16);
  }
}

void store_row(const float* values, std::int64_t count, SparseMlaDType dtype, std::int64_t offset,
               void* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (dtype == SparseMlaDType::kFloat32) {
      static_cast<float*>(out)[offset + i] = values[i];
      continue;
    }
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]);
    const std::uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
    static_cast<std::uint16_t*>(out)[offset + i] =
        std::isnan(values[i]) ? 0x7FC0 : static_cast<std::uint16_t>(rounded >> 16);
  }
}

}  // namespace

void sparse_mla_cpu(const SparseMlaParams& p, const Parallel& parallel) {
  std::atomic<std::int64_t> next{0};
  parallel.run([&](int) {
    std::vector<float> kv, q(p.dim), logits, out(p.value_dim);
    for (std::int64_t t; (t = next.fetch_add(1)) < p.num_queries;) {
      std::int64_t count = 0;
      kv.resize(p.top_k * p.dim);
      for (std::int64_t i = 0; i < p.top_k; ++i) {
        const std::int64_t s = p.indices[t * p.top_k + i];
        if (s >= 0) load_row(p.kv, p.dtype, s * p.kv_stride, p.dim, &kv[count++ * p.dim]);
      }
      for (std::int64_t h = 0; h < p.num_heads; ++h) {
        load_row(p.q, p.dtype, (t * p.num_heads + h) * p.dim, p.dim, q.data());
        logits.assign(count, 0);
        float max = -std::numeric_limits<float>::infinity();
        for (std::int64_t i = 0; i < count; ++i) {
          float dot[16] = {}, total = 0;
          for (std::int64_t d = 0; d < p.dim; ++d) dot[d % 16] += q[d] * kv[i * p.dim + d];
          for (const float part : dot) total += part;
          logits[i] = p.softmax_scale * total;
          max = std::max(max, logits[i]);
        }
        if (max == -std::numeric_limits<float>::infinity()) max = 0;
        float sum = 0;
        std::fill(out.begin(), out.end(), 0.0f);
        for (std::int64_t i = 0; i < count; ++i) {
          const float probability = std::exp(logits[i] - max);
          sum += probability;
          for (std::int64_t d = 0; d < p.value_dim; ++d) out[d] += probability * kv[i * p.dim + d];
        }
        if (count > 0) {
          for (float& value : out) value /= sum;
        }
        p.lse[t * p.num_heads + h] = max + std::log(sum);
        store_row(out.data(), p.value_dim, p.dtype, (t * p.num_heads + h) * p.value_dim, p.out);
      }
    }
  });
}

}  // namespace indexcache
