// Problems for sparse_mla's kernels of 512 + 64 latents, and what their results may differ from the
// double reference by.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "indexcache/ops/sparse_mla/sparse_mla_params.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"
#include "support/bf16.h"

namespace indexcache::testing {

struct LatentProblem {
  std::string name;
  std::int64_t queries = 1, heads = 1, keys = 1, top_k = 1;
  LatentFormat format = LatentFormat::kBFloat16;
  EntryKind kind = EntryKind::kIndices;
  EntrySplit split = EntrySplit::kWhole;
  std::int64_t first_position = 0;  // of the first query: where groups begin
  int page_shift = 31;              // below 31: shuffled pages behind a block table
  float softmax_scale = 1.0f / 24;

  std::vector<std::uint16_t> q;       // [queries, heads, 576]
  std::vector<unsigned char> rows;    // [keys] of latent_row_bytes: by key, before paging
  std::vector<std::int32_t> indices;  // [queries, top_k]

  std::int64_t row_bytes() const { return latent_row_bytes(format); }
};

// Sets bf16 value d of key `key` (RoPE part included); e4m3 latents get the nearest they can: NaN
// or 0.
inline void poison(LatentProblem& p, std::int64_t key, std::int64_t d, float value) {
  unsigned char* row = &p.rows[key * p.row_bytes()];
  const std::uint16_t bits = to_bf16(value);
  if (p.format == LatentFormat::kBFloat16) {
    std::memcpy(row + 2 * d, &bits, 2);
  } else if (d >= kLatentDim) {
    std::memcpy(row + kLatentDim + 16 + 2 * (d - kLatentDim), &bits, 2);
  } else if (std::isnan(value)) {
    row[d] = d % 2 ? 0x7F : 0xFF;
  } else {  // an infinite scale: inf, or NaN for zeros
    std::memcpy(row + kLatentDim + d / 128 * 4, &value, 4);
  }
}

inline void fill_rows(LatentProblem& p, std::mt19937& random) {
  std::normal_distribution<float> normal;
  p.rows.assign(p.keys * p.row_bytes(), 0);
  for (std::int64_t key = 0; key < p.keys; ++key) {
    unsigned char* row = &p.rows[key * p.row_bytes()];
    const bool e4m3 = p.format == LatentFormat::kE4M3;
    if (e4m3) {
      for (int d = 0; d < kLatentDim; ++d) {
        const auto bits = static_cast<unsigned char>(random());
        row[d] = (bits & 0x7F) == 0x7F ? 0 : bits;
      }
      for (int block = 0; block < 4; ++block) {
        const float scale = 0.005f * (1 + static_cast<float>(random() % 1000) / 1000);
        std::memcpy(row + kLatentDim + 4 * block, &scale, 4);
      }
    }
    for (std::int64_t d = e4m3 ? kLatentDim : 0; d < kLatentDim + kRopeDim; ++d) {
      poison(p, key, d, normal(random));
    }
  }
}

// A union's sets are ascending without duplicates, each drifting from the one before; plain rows
// are anything, with -1 and duplicates.
inline void fill_indices(LatentProblem& p, std::mt19937& random) {
  p.indices.assign(p.queries * p.top_k, -1);
  std::set<std::int32_t> drifting;
  for (std::int64_t t = 0; t < p.queries; ++t) {
    std::int32_t* row = &p.indices[t * p.top_k];
    if (p.kind == EntryKind::kIndices) {
      for (std::int64_t i = 0; i < p.top_k; ++i) {
        row[i] = random() % 5 == 0 ? -1 : static_cast<std::int32_t>(random() % p.keys);
      }
      continue;
    }
    const std::size_t size =
        std::min<std::size_t>(p.top_k, p.keys - random() % std::max<std::int64_t>(1, p.keys / 3));
    while (drifting.size() > size / 2)
      drifting.erase(std::next(drifting.begin(), random() % drifting.size()));
    while (drifting.size() < size) drifting.insert(static_cast<std::int32_t>(random() % p.keys));
    std::copy(drifting.begin(), drifting.end(), row);
  }
}

inline LatentProblem make_problem(LatentProblem p, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  p.q.resize(p.queries * p.heads * (kLatentDim + kRopeDim));
  for (std::uint16_t& value : p.q) value = to_bf16(normal(random));
  fill_rows(p, random);
  fill_indices(p, random);
  return p;
}

struct Reference {
  std::vector<double> out, lse, out_bound, lse_bound;
};

// The kernel's arithmetic. With A the largest sum_d |q_d kv_d| of a row's keys:
//   a wgmma adds 16 products to an accumulator and drops what lies below 2^-23 of the largest of
//   them, once for each; 576 products and 36 sums: a logit is off by at most a = softmax_scale *
//   612 * 2^-23 * A; so a weight is off by a factor within exp(+-2a) (its maximum is off as well),
//   times 1 + 2^-21 for exp2; weights are rounded to bf16 for the product with values, 1 + 2^-9,
//   their sum is not; products over n keys drop (n + n / 16) 2^-23 of their magnitude, and the
//   rescalings of n / 64 tiles and of the parts of a cluster round n / 64 + 16 times.
// The relative error e of a ratio of such sums is below 2 (2a) + 2^-8 + (2 n + 64) 2^-22, so
//   |out error| <= e sum_s p_s |v_s| + 2^-8 |out|       |lse error| <= 2a + (n + 64) 2^-22 + 2^-22
//   |lse|
inline Reference reference_of(const LatentProblem& p) {
  constexpr std::int64_t kDim = kLatentDim + kRopeDim;
  std::vector<float> kv(p.keys * kDim), q;
  const LatentStore store = {
      .format = p.format, .data = p.rows.data(), .row_stride = p.row_bytes(), .num_keys = p.keys};
  for (std::int64_t s = 0; s < p.keys; ++s) read_latent(store, 0, s, &kv[s * kDim]);
  for (const std::uint16_t bits : p.q) q.push_back(from_bf16(bits));
  const std::int64_t rows = p.queries * p.heads;
  Reference r{std::vector<double>(rows * kLatentDim), std::vector<double>(rows),
              std::vector<double>(rows * kLatentDim), std::vector<double>(rows)};
  sparse_mla_ref({.num_queries = p.queries,
                  .num_heads = p.heads,
                  .dim = kDim,
                  .value_dim = kLatentDim,
                  .num_keys = p.keys,
                  .top_k = p.top_k,
                  .softmax_scale = p.softmax_scale,
                  .dtype = SparseMlaDType::kFloat32,
                  .q = q.data(),
                  .kv = kv.data(),
                  .kv_stride = kDim,
                  .indices = p.indices.data(),
                  .out = nullptr,
                  .lse = nullptr},
                 r.out.data(), r.lse.data());
  for (std::int64_t row = 0; row < rows; ++row) {
    double largest = 0, n = 0;
    std::vector<double> magnitude(kLatentDim);
    for (std::int64_t i = 0; i < p.top_k; ++i) {
      const std::int64_t s = p.indices[row / p.heads * p.top_k + i];
      if (s < 0) continue;
      double sum = 0, dot = 0;
      for (std::int64_t d = 0; d < kDim; ++d) {
        const double term = double{q[row * kDim + d]} * kv[s * kDim + d];
        sum += std::abs(term);
        dot += term;
      }
      largest = std::max(largest, sum);
      const double weight = std::exp(p.softmax_scale * dot - r.lse[row]);
      for (std::int64_t d = 0; d < kLatentDim; ++d)
        magnitude[d] += weight * std::abs(kv[s * kDim + d]);
      ++n;
    }
    const double a = p.softmax_scale * 612 * 0x1p-23 * largest;
    r.lse_bound[row] = 2 * a + (n + 64) * 0x1p-22 + 0x1p-22 * std::abs(r.lse[row]);
    const double relative = 4 * a + 0x1p-8 + (2 * n + 64) * 0x1p-22;
    for (std::int64_t d = 0; d < kLatentDim; ++d) {
      r.out_bound[row * kLatentDim + d] =
          relative * magnitude[d] + 0x1p-8 * std::abs(r.out[row * kLatentDim + d]);
    }
  }
  return r;
}

}  // namespace indexcache::testing
