// sparse_mla's CPU kernels against the double reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "indexcache/ops/sparse_mla/sparse_mla_params.h"
#include "support/cpu_targets.h"
#include "support/op_inputs.h"

namespace indexcache {
namespace {

using testing::for_each_cpu_target;
using testing::from_bf16;
using testing::Guarded;
using testing::normal_values;
using testing::threads;
using testing::to_bf16;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  std::int64_t queries, heads, dim, value_dim, keys, top_k;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "M " << s.queries << " h " << s.heads << " dim " << s.dim << " value_dim "
             << s.value_dim << " N " << s.keys << " k " << s.top_k;
}

struct Result {
  std::vector<float> out, lse;
};

struct Problem {
  Shape shape;
  SparseMlaDType dtype = SparseMlaDType::kFloat32;
  std::vector<float> q, kv;
  std::vector<std::int32_t> indices;
  std::int64_t kv_padding = 0;  // elements between the rows of kv, filled with NaN
  float softmax_scale = 0.1f;

  bool bf16() const { return dtype == SparseMlaDType::kBFloat16; }
  float seen(float value) const { return bf16() ? from_bf16(to_bf16(value)) : value; }

  // Keeps what the params point to alive.
  struct Bound {
    std::vector<float> kv32;
    std::vector<std::uint16_t> q16, kv16;
    SparseMlaParams params;
  };
  void bind(Bound& b) const {
    const std::int64_t stride = shape.dim + kv_padding;
    b.kv32.assign(shape.keys * stride, kNaN);
    for (std::int64_t s = 0; s < shape.keys; ++s) {
      std::copy_n(&kv[s * shape.dim], shape.dim, &b.kv32[s * stride]);
    }
    b.q16 = to_bf16(q);
    b.kv16 = to_bf16(b.kv32);
    b.params = {.num_queries = shape.queries,
                .num_heads = shape.heads,
                .dim = shape.dim,
                .value_dim = shape.value_dim,
                .num_keys = shape.keys,
                .top_k = shape.top_k,
                .softmax_scale = softmax_scale,
                .dtype = dtype,
                .q = bf16() ? static_cast<const void*>(b.q16.data()) : q.data(),
                .kv = bf16() ? static_cast<const void*>(b.kv16.data()) : b.kv32.data(),
                .kv_stride = stride,
                .indices = indices.data(),
                .out = nullptr,
                .lse = nullptr};
  }

  Result run(const Parallel& parallel) const {
    Bound b;
    bind(b);
    const std::int64_t rows = shape.queries * shape.heads;
    Guarded<float> lse(rows);
    b.params.lse = lse.data();
    Result result;
    if (bf16()) {
      Guarded<std::uint16_t> out(rows * shape.value_dim);
      b.params.out = out.data();
      sparse_mla_cpu(b.params, parallel);
      for (const std::uint16_t value : out.copy()) result.out.push_back(from_bf16(value));
    } else {
      Guarded<float> out(rows * shape.value_dim);
      b.params.out = out.data();
      sparse_mla_cpu(b.params, parallel);
      result.out = out.copy();
    }
    result.lse = lse.copy();
    return result;
  }
  void reference(std::vector<double>& out, std::vector<double>& lse) const {
    Bound b;
    bind(b);
    out.resize(shape.queries * shape.heads * shape.value_dim);
    lse.resize(shape.queries * shape.heads);
    sparse_mla_ref(b.params, out.data(), lse.data());
  }
};

Problem make(const Shape& shape, SparseMlaDType dtype, unsigned seed) {
  std::mt19937 random(seed);
  Problem p;
  p.shape = shape;
  p.dtype = dtype;
  p.q = normal_values(shape.queries * shape.heads * shape.dim, random);
  p.kv = normal_values(shape.keys * shape.dim, random);
  p.indices.resize(shape.queries * shape.top_k);
  for (std::int32_t& index : p.indices) {
    index = static_cast<std::int32_t>(random() % (shape.keys + shape.keys / 4 + 1)) -
            static_cast<std::int32_t>(shape.keys / 4 + 1);  // a fifth of them skipped
  }
  p.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
  return p;
}

const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 1},          {2, 20, 576, 512, 300, 260}, {3, 5, 48, 40, 70, 33},
    {1, 3, 7, 5, 20, 200},       {4, 16, 80, 64, 90, 17},     {2, 33, 33, 31, 50, 40},
    {1, 20, 576, 512, 900, 700}, {5, 8, 64, 64, 40, 1},       {2, 13, 130, 97, 400, 129},
};

template <typename Check>
void for_each_case(const Check& check) {
  for (const SparseMlaDType dtype : {SparseMlaDType::kFloat32, SparseMlaDType::kBFloat16}) {
    SCOPED_TRACE(dtype == SparseMlaDType::kFloat32 ? "fp32" : "bf16");
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(::testing::Message() << shape);
      check(shape, dtype);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// With u = 2^-24 and A = softmax_scale * max_s sum_d |q_d kv_sd|:
//   a logit is off by at most a = (dim + 3) u A (dim products and sums in any order, the scale);
//   so each weight exp(logit - max) is off by a factor within exp(+-2a) (max is off as well), times
//   1 + 4u for exp itself and 1 + (n + 4) u for sums over n keys and the merging of their parts; in
//   the bf16 kernels the weights are rounded to bf16 before the sum over values: 1 + 2^-8 covers
//   it.
// The relative error e of any ratio of such sums is below 2 (2a + (2n + 16) u) + 2^-7 [bf16], so
//   |out error| <= e * sum_s p_s |v_s| + rounding of the output to its dtype,
//   |lse error| <= 2a + (n + 16) u + u |lse|.
TEST(SparseMla, IsWithinTheRoundingBoundOfTheReference) {
  for_each_case([](const Shape& shape, SparseMlaDType dtype) {
    Problem p = make(shape, dtype, 21);
    p.kv_padding = 3;
    std::vector<double> out, lse;
    p.reference(out, lse);
    std::vector<double> out_bound(out.size()), lse_bound(lse.size());
    const double u = 0x1p-24;
    for (std::int64_t row = 0; row < shape.queries * shape.heads; ++row) {
      const std::int32_t* indices = &p.indices[row / shape.heads * shape.top_k];
      double largest = 0, n = 0;
      std::vector<double> logit(shape.top_k, -kInf);
      for (std::int64_t i = 0; i < shape.top_k; ++i) {
        if (indices[i] < 0) continue;
        double magnitude = 0, dot = 0;
        for (std::int64_t d = 0; d < shape.dim; ++d) {
          const double term =
              double{p.seen(p.q[row * shape.dim + d])} * p.seen(p.kv[indices[i] * shape.dim + d]);
          magnitude += std::abs(term);
          dot += term;
        }
        largest = std::max(largest, p.softmax_scale * magnitude);
        logit[i] = p.softmax_scale * dot;
        ++n;
      }
      if (n == 0) continue;  // both are exact
      const double a = (shape.dim + 3) * u * largest;
      lse_bound[row] = 2 * a + (n + 16) * u + u * std::abs(lse[row]);
      const double relative = 2 * (2 * a + (2 * n + 16) * u) + (p.bf16() ? 0x1p-7 : 0);
      for (std::int64_t d = 0; d < shape.value_dim; ++d) {
        double magnitude = 0;
        for (std::int64_t i = 0; i < shape.top_k; ++i) {
          if (indices[i] < 0) continue;
          magnitude +=
              std::exp(logit[i] - lse[row]) * std::abs(p.seen(p.kv[indices[i] * shape.dim + d]));
        }
        const std::int64_t at = row * shape.value_dim + d;
        out_bound[at] = relative * magnitude + std::abs(out[at]) * (p.bf16() ? 0x1p-8 : u);
      }
    }
    for_each_cpu_target([&] {
      const Result result = p.run(threads(2));
      for (std::size_t i = 0; i < lse.size(); ++i) {
        if (lse[i] == -kInf) {
          ASSERT_EQ(result.lse[i], -kInf);
        } else {
          ASSERT_NEAR(result.lse[i], lse[i], lse_bound[i]) << "row " << i;
        }
      }
      for (std::size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(result.out[i], out[i], out_bound[i])
            << "row " << i / shape.value_dim << " d " << i % shape.value_dim;
      }
    });
  });
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  ASSERT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
}

// A query's bits depend on its own entries only: not on its company, the threads, or where skipped
// entries stand.
TEST(SparseMla, ChunksThreadsAndSkippedEntriesChangeNoBit) {
  for_each_case([](const Shape& shape, SparseMlaDType dtype) {
    const Problem p = make(shape, dtype, 22);
    for_each_cpu_target([&] {
      const Result whole = p.run(threads(1));
      for (const int count : {2, 3}) {
        const Result again = p.run(threads(count));
        expect_same_bits(again.out, whole.out);
        expect_same_bits(again.lse, whole.lse);
      }
      for (std::int64_t t = 0; t < shape.queries; ++t) {
        Problem one = p;
        one.shape.queries = 1;
        const std::int64_t row = shape.heads * shape.dim;
        one.q.assign(&p.q[t * row], &p.q[t * row] + row);
        one.indices.assign(&p.indices[t * shape.top_k], &p.indices[t * shape.top_k] + shape.top_k);
        const auto valid_end = std::stable_partition(one.indices.begin(), one.indices.end(),
                                                     [](std::int32_t index) { return index >= 0; });
        std::fill(valid_end, one.indices.end(), -1);
        const Result alone = one.run(threads(3));
        const std::int64_t size = shape.heads * shape.value_dim;
        expect_same_bits(alone.out, {&whole.out[t * size], &whole.out[t * size] + size});
        expect_same_bits(alone.lse,
                         {&whole.lse[t * shape.heads], &whole.lse[t * shape.heads] + shape.heads});
      }
    });
  });
}

TEST(SparseMla, RowsNotSelectedDoNotMatter) {
  for_each_case([](const Shape& shape, SparseMlaDType dtype) {
    const Problem p = make(shape, dtype, 23);
    Problem dirty = p;
    std::vector<bool> selected(shape.keys);
    for (const std::int32_t index : p.indices) {
      if (index >= 0) selected[index] = true;
    }
    for (std::int64_t s = 0; s < shape.keys; ++s) {
      if (!selected[s]) std::fill_n(&dirty.kv[s * shape.dim], shape.dim, kNaN);
    }
    for_each_cpu_target([&] {
      const Result clean = p.run(threads(2)), beside = dirty.run(threads(2));
      expect_same_bits(beside.out, clean.out);
      expect_same_bits(beside.lse, clean.lse);
    });
  });
}

TEST(SparseMla, EmptyRowsGiveZeroAndMinusInfinity) {
  for_each_cpu_target([] {
    for (const SparseMlaDType dtype : {SparseMlaDType::kFloat32, SparseMlaDType::kBFloat16}) {
      Problem p = make({3, 5, 48, 40, 70, 33}, dtype, 24);
      std::fill_n(&p.indices[33], 33, -1);
      const Result result = p.run(threads(2));
      for (std::int64_t i = 5 * 40; i < 10 * 40; ++i) ASSERT_EQ(result.out[i], 0.0f);
      for (std::int64_t i = 5; i < 10; ++i) ASSERT_EQ(result.lse[i], -kInf);
      p.shape.top_k = 0;
      p.indices.clear();
      for (const float value : p.run(threads(2)).out) ASSERT_EQ(value, 0.0f);
      p.shape.queries = 0;
      EXPECT_TRUE(p.run(threads(2)).out.empty());
    }
  });
}

// Duplicates count as often as they occur: a key three times against another once.
TEST(SparseMla, DuplicatesCount) {
  for_each_cpu_target([] {
    Problem p = make({1, 1, 2, 2, 2, 4}, SparseMlaDType::kFloat32, 25);
    p.q = {0, 0};
    p.kv = {1, 2, 5, 10};
    p.indices = {0, 1, 0, 0};
    const Result result = p.run(threads(1));
    EXPECT_FLOAT_EQ(result.out[0], 2);
    EXPECT_FLOAT_EQ(result.out[1], 4);
    EXPECT_FLOAT_EQ(result.lse[0], std::log(4.0f));
  });
}

// Logits far apart, beyond exp's range, in either order over several segments of keys.
TEST(SparseMla, FarApartLogitsNeitherOverflowNorVanish) {
  for_each_cpu_target([] {
    for (const SparseMlaDType dtype : {SparseMlaDType::kFloat32, SparseMlaDType::kBFloat16}) {
      for (const bool rising : {false, true}) {
        Problem p = make({1, 2, 1, 1, 600, 600}, dtype, 26);
        p.q = {1, -1};
        p.softmax_scale = 1000;
        for (std::int64_t s = 0; s < 600; ++s) {
          p.indices[s] = static_cast<std::int32_t>(rising ? s : 599 - s);
          p.kv[s] = from_bf16(to_bf16(static_cast<float>(s - 300)));
        }
        const Result result = p.run(threads(2));
        std::vector<double> out, lse;
        p.reference(out, lse);
        for (int h = 0; h < 2; ++h) {
          EXPECT_FLOAT_EQ(result.out[h], static_cast<float>(out[h]));
          EXPECT_FLOAT_EQ(result.lse[h], static_cast<float>(lse[h]));
        }
      }
    }
  });
}

// A selected NaN or inf shows where the definition says, and nowhere else.
TEST(SparseMla, SelectedSpecialValuesShow) {
  for_each_cpu_target([] {
    for (const SparseMlaDType dtype : {SparseMlaDType::kFloat32, SparseMlaDType::kBFloat16}) {
      for (const std::int64_t count : {1, 2, 5, 131}) {
        Problem p = make({2, 5, 48, 40, 200, count}, dtype, 27);
        for (std::int64_t i = 0; i < count; ++i) {
          p.indices[i] = static_cast<std::int32_t>(i);
          p.indices[count + i] = static_cast<std::int32_t>(i + 1);
        }
        // Row 0, selected by query 0 alone: an inf that no head's query sees in column 3.
        for (std::int64_t h = 0; h < 10; ++h) p.q[h * 48 + 3] = 1;
        p.kv[0 * 48 + 3] = -std::numeric_limits<float>::infinity();
        const Result result = p.run(threads(1));
        for (std::int64_t h = 0; h < 5; ++h) {  // weight 0 times inf in column 3, others clean
          EXPECT_TRUE(std::isnan(result.out[h * 40 + 3])) << count;
          EXPECT_EQ(std::isnan(result.out[h * 40 + 4]), count == 1) << count;
          EXPECT_EQ(std::isinf(result.lse[h]), count == 1) << count;
        }
        for (std::int64_t i = 5 * 40; i < 10 * 40; ++i) EXPECT_FALSE(std::isnan(result.out[i]));
      }
    }
  });
}

}  // namespace
}  // namespace indexcache
