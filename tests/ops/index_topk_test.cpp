// index_topk's CPU kernels against the double reference and against a selection over their own
// scores.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "indexcache/ops/index_topk/index_topk_params.h"
#include "support/cpu_targets.h"
#include "support/op_inputs.h"

namespace indexcache {
namespace {

using testing::for_each_cpu_target;
using testing::from_bf16;
using testing::Guarded;
using testing::lattice_values;
using testing::normal_values;
using testing::threads;
using testing::to_bf16;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  std::int64_t queries, heads, dim, keys, top_k;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "M " << s.queries << " H " << s.heads << " D " << s.dim << " N " << s.keys << " k "
             << s.top_k;
}

struct Problem {
  Shape shape;
  IndexDType dtype = IndexDType::kFloat32;
  std::vector<float> q, keys, weights;
  std::vector<std::int32_t> start, end;
  std::int64_t key_padding = 0;  // elements between the rows of keys, filled with NaN

  // Keeps what the params point to alive.
  struct Bound {
    std::vector<float> q32, keys32;
    std::vector<std::uint16_t> q16, keys16;
    IndexTopkParams params;
  };
  void bind(Bound& b) const {
    const std::int64_t stride = shape.dim + key_padding;
    b.q32 = q;
    b.keys32.assign(shape.keys * stride, kNaN);
    for (std::int64_t s = 0; s < shape.keys; ++s) {
      std::copy_n(&keys[s * shape.dim], shape.dim, &b.keys32[s * stride]);
    }
    b.q16 = to_bf16(b.q32);
    b.keys16 = to_bf16(b.keys32);
    const bool full = dtype == IndexDType::kFloat32;
    b.params = {.num_queries = shape.queries,
                .num_heads = shape.heads,
                .head_dim = shape.dim,
                .num_keys = shape.keys,
                .top_k = shape.top_k,
                .dtype = dtype,
                .q = full ? static_cast<const void*>(b.q32.data()) : b.q16.data(),
                .keys = full ? static_cast<const void*>(b.keys32.data()) : b.keys16.data(),
                .key_stride = stride,
                .weights = weights.data(),
                .start = start.data(),
                .end = end.data(),
                .out = nullptr};
  }

  std::vector<std::int32_t> run(const Parallel& parallel) const {
    Bound b;
    bind(b);
    Guarded<std::int32_t> out(shape.queries * shape.top_k);
    b.params.out = out.data();
    index_topk_cpu(b.params, parallel);
    return out.copy();
  }
  std::vector<std::int32_t> reference() const {
    Bound b;
    bind(b);
    std::vector<std::int32_t> out(shape.queries * shape.top_k);
    b.params.out = out.data();
    index_topk_ref(b.params);
    return out;
  }
  std::vector<float> scores() const {
    Bound b;
    bind(b);
    Guarded<float> out(shape.queries * shape.keys);
    index_scores_cpu(b.params, out.data());
    return out.copy();
  }
  std::vector<double> reference_scores() const {
    Bound b;
    bind(b);
    std::vector<double> out(shape.queries * shape.keys);
    index_scores_ref(b.params, out.data());
    return out;
  }
};

Problem make(Shape shape, IndexDType dtype, bool lattice, unsigned seed) {
  std::mt19937 random(seed);
  Problem p;
  p.shape = shape;
  p.dtype = dtype;
  const std::int64_t q_size = shape.queries * shape.heads * shape.dim;
  const std::int64_t key_size = shape.keys * shape.dim;
  p.q = lattice ? lattice_values(q_size, 4, random) : normal_values(q_size, random);
  p.keys = lattice ? lattice_values(key_size, 4, random) : normal_values(key_size, random);
  p.weights = normal_values(shape.queries * shape.heads, random);
  if (lattice) {  // powers of two of either sign
    for (float& w : p.weights) w = std::copysign(std::exp2(std::floor(std::abs(w) * 2)), w);
  }
  p.start.assign(shape.queries, 0);
  p.end.assign(shape.queries, static_cast<std::int32_t>(shape.keys));
  return p;
}

void make_ragged(Problem& p, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<std::int32_t> uniform(0, static_cast<std::int32_t>(p.shape.keys));
  for (std::int64_t t = 0; t < p.shape.queries; ++t) {
    p.start[t] = uniform(random);
    p.end[t] = uniform(random);
    if (t % 3 != 0 && p.end[t] < p.start[t]) std::swap(p.start[t], p.end[t]);
  }
}

// The op's definition of the selection, over given scores.
std::vector<std::int32_t> select(const Problem& p, const std::vector<float>& scores) {
  std::vector<std::int32_t> out(p.shape.queries * p.shape.top_k, -1);
  for (std::int64_t t = 0; t < p.shape.queries; ++t) {
    const float* row = scores.data() + t * p.shape.keys;
    std::vector<std::int32_t> order(std::max(0, p.end[t] - p.start[t]));
    std::iota(order.begin(), order.end(), p.start[t]);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      if (std::isnan(row[b])) return !std::isnan(row[a]);
      return row[a] > row[b];
    });
    order.resize(std::min<std::int64_t>(order.size(), p.shape.top_k));
    std::sort(order.begin(), order.end());
    for (std::size_t i = 0; i < order.size(); ++i) {
      out[t * p.shape.top_k + i] = order[i] - p.start[t];
    }
  }
  return out;
}

const Shape kShapes[] = {
    {1, 1, 1, 1, 1},     {1, 32, 128, 700, 64}, {3, 5, 48, 130, 16},   {17, 5, 48, 97, 200},
    {9, 16, 7, 500, 33}, {2, 33, 64, 321, 32},  {5, 64, 128, 600, 50}, {4, 8, 128, 1100, 100},
    {2, 3, 1, 64, 64},   {1, 2, 16, 5000, 9},   {11, 20, 31, 49, 48},  {13, 4, 128, 400, 30},
};

template <typename Check>
void for_each_case(const Check& check) {
  for (const IndexDType dtype : {IndexDType::kFloat32, IndexDType::kBFloat16}) {
    SCOPED_TRACE(dtype == IndexDType::kFloat32 ? "fp32" : "bf16");
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(::testing::Message() << shape);
      check(shape, dtype);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Lattice values: every product and sum is an integer below 2^24 times a power of two within 2^24
// of the largest, so fp32 computes the scores exactly in any order and the sets must be equal.
TEST(IndexTopk, LatticeInputsGiveTheReferencesIndices) {
  for_each_case([](const Shape& shape, IndexDType dtype) {
    for (const bool ragged : {false, true}) {
      Problem p = make(shape, dtype, true, 11);
      if (ragged) make_ragged(p, 5);
      const auto expected = p.reference();
      for_each_cpu_target([&] { ASSERT_EQ(p.run(threads(2)), expected); });
    }
  });
}

TEST(IndexTopk, AnyInputsGiveTheSelectionOverTheOpsOwnScores) {
  for_each_case([](const Shape& shape, IndexDType dtype) {
    Problem p = make(shape, dtype, false, 12);
    make_ragged(p, 6);
    p.key_padding = 3;
    for_each_cpu_target([&] { ASSERT_EQ(p.run(threads(2)), select(p, p.scores())); });
  });
}

// |fp32 - exact| for any order of summation: a dot of D products carries at most (D + 1) roundings
// of relative 2^-24 each on sum |q k| (dpbf16ps rounds once or twice a pair of products, no more);
// relu does not enlarge an error; the product with w and the H-term sum add H + 1 more. So
//   |error| <= gamma(D + H + 2) * sum_h |w_h| sum_d |q_hd k_d|,  gamma(n) = n 2^-24 / (1 - n
//   2^-24).
TEST(IndexTopk, ScoresAreWithinTheRoundingBound) {
  for_each_case([](const Shape& shape, IndexDType dtype) {
    Problem p = make(shape, dtype, false, 13);
    const auto round = [&](float x) {
      return dtype == IndexDType::kBFloat16 ? from_bf16(to_bf16(x)) : x;
    };
    const std::vector<double> exact = p.reference_scores();
    const double n = (shape.dim + shape.heads + 2) * 0x1p-24;
    std::vector<double> bound(exact.size());
    for (std::int64_t t = 0; t < shape.queries; ++t) {
      for (std::int64_t s = 0; s < shape.keys; ++s) {
        double magnitude = 0;
        for (std::int64_t h = 0; h < shape.heads; ++h) {
          double dot = 0;
          for (std::int64_t d = 0; d < shape.dim; ++d) {
            dot += std::abs(double{round(p.q[(t * shape.heads + h) * shape.dim + d])} *
                            round(p.keys[s * shape.dim + d]));
          }
          magnitude += std::abs(p.weights[t * shape.heads + h]) * dot;
        }
        bound[t * shape.keys + s] = n / (1 - n) * magnitude;
      }
    }
    for_each_cpu_target([&] {
      const std::vector<float> scores = p.scores();
      for (std::size_t i = 0; i < exact.size(); ++i) {
        ASSERT_NEAR(scores[i], exact[i], bound[i])
            << "query " << i / shape.keys << " key " << i % shape.keys;
      }
    });
  });
}

// A query's result does not depend on the queries beside it, nor on the number of threads.
TEST(IndexTopk, ChunksAndThreadsChangeNoBit) {
  for_each_case([](const Shape& shape, IndexDType dtype) {
    Problem p = make(shape, dtype, false, 14);
    make_ragged(p, 7);
    for_each_cpu_target([&] {
      const auto whole = p.run(threads(1));
      ASSERT_EQ(p.run(threads(2)), whole);
      ASSERT_EQ(p.run(threads(3)), whole);
      const auto scores = p.scores();
      for (std::int64_t t = 0; t < shape.queries; ++t) {
        Problem one = p;
        one.shape.queries = 1;
        const std::int64_t row = shape.heads * shape.dim;
        one.q.assign(&p.q[t * row], &p.q[t * row] + row);
        one.weights.assign(&p.weights[t * shape.heads], &p.weights[t * shape.heads] + shape.heads);
        one.start = {p.start[t]};
        one.end = {p.end[t]};
        const std::vector<std::int32_t> expected(&whole[t * shape.top_k],
                                                 &whole[t * shape.top_k] + shape.top_k);
        ASSERT_EQ(one.run(threads(3)), expected) << "query " << t;
        const auto own = one.scores();
        ASSERT_EQ(0, std::memcmp(own.data(), &scores[t * shape.keys], shape.keys * sizeof(float)));
      }
    });
  });
}

// The boundary falls in a plateau of equal scores: the lower indices win. Keys of all-zero scores
// are what relu makes of every key that no head likes.
TEST(IndexTopk, TiesGoToTheLowerIndex) {
  for_each_cpu_target([] {
    for (const IndexDType dtype : {IndexDType::kFloat32, IndexDType::kBFloat16}) {
      Problem p = make({2, 4, 16, 9000, 100}, dtype, true, 15);
      std::fill(p.keys.begin(), p.keys.end(), 0.0f);
      std::vector<std::int32_t> first(100);
      std::iota(first.begin(), first.end(), 0);
      const auto all_equal = p.run(threads(2));
      EXPECT_EQ(std::vector(all_equal.begin(), all_equal.begin() + 100), first);
      EXPECT_EQ(std::vector(all_equal.begin() + 100, all_equal.end()), first);

      std::mt19937 random(3);  // two values, at random, on a plateau of zeros
      for (std::int64_t s = 0; s < p.shape.keys; ++s)
        p.keys[s * 16] = static_cast<float>(random() % 97 == 0);
      EXPECT_EQ(p.run(threads(3)), p.reference());
    }
  });
}

// Negative weights: a key whose dots are all <= 0 scores 0, above every negative score.
TEST(IndexTopk, ZeroBeatsNegativeScores) {
  for_each_cpu_target([] {
    Problem p = make({1, 1, 1, 6, 2}, IndexDType::kFloat32, true, 0);
    p.q = {1};
    p.weights = {-1};
    p.keys = {3, 1, -2, 2, -5, 4};
    EXPECT_EQ(p.run(threads(1)), (std::vector<std::int32_t>{2, 4}));
    p.weights = {1};  // and loses to positive ones
    EXPECT_EQ(p.run(threads(1)), (std::vector<std::int32_t>{0, 5}));
    p.weights = {-1};
    p.start = {3};  // a masked key never wins while a valid one remains
    p.end = {4};
    EXPECT_EQ(p.run(threads(1)), (std::vector<std::int32_t>{0, -1}));
  });
}

TEST(IndexTopk, OrdersInfinityAndNaN) {
  for_each_cpu_target([] {
    for (const IndexDType dtype : {IndexDType::kFloat32, IndexDType::kBFloat16}) {
      // relu(q k) w with q = 1, w = -1: 7 -> -7, inf -> -inf, NaN -> NaN, -1 -> -0 = 0 -> 0.
      Problem p = make({1, 1, 1, 8, 1}, dtype, true, 0);
      p.q = {1};
      p.weights = {-1};
      p.keys = {kNaN, kInf, 7, -1, kInf, kNaN, 0, 7};
      const std::vector<std::int32_t> best_first = {3, 6, 2, 7, 1, 4, 0, 5};
      for (std::int64_t k = 1; k <= 10; ++k) {
        p.shape.top_k = k;
        std::vector<std::int32_t> expected(best_first.begin(),
                                           best_first.begin() + std::min<std::int64_t>(k, 8));
        std::sort(expected.begin(), expected.end());
        expected.resize(k, -1);
        EXPECT_EQ(p.run(threads(2)), expected) << "k " << k;
        EXPECT_EQ(p.reference(), expected) << "k " << k;
      }
    }
  });
}

// Special values anywhere, in shapes whose heads and dims do not fill the vectors: padding must not
// turn an inf into a NaN.
TEST(IndexTopk, SpecialValuesEqualTheReference) {
  for_each_case([](const Shape& shape, IndexDType dtype) {
    Problem p = make(shape, dtype, true, 16);
    std::mt19937 random(4);
    const float specials[] = {kInf, -kInf, kNaN, -0.0f};
    for (float& key : p.keys) {
      if (random() % 400 == 0) key = specials[random() % 4];
    }
    for (float& q : p.q) {
      if (random() % 4000 == 0) q = specials[random() % 4];
    }
    const auto expected = p.reference();
    for_each_cpu_target([&] { ASSERT_EQ(p.run(threads(2)), expected); });
  });
}

// NaN keys outside the range are never read into a result.
TEST(IndexTopk, KeysOutsideTheRangeDoNotMatter) {
  for_each_case([](const Shape& shape, IndexDType dtype) {
    Problem p = make(shape, dtype, false, 17);
    for (std::int64_t t = 0; t < shape.queries; ++t) {
      p.start[t] = static_cast<std::int32_t>(shape.keys / 4);
      p.end[t] = static_cast<std::int32_t>(shape.keys / 2);
    }
    Problem dirty = p;
    for (std::int64_t s = 0; s < shape.keys; ++s) {
      if (s >= shape.keys / 4 && s < shape.keys / 2) continue;
      std::fill_n(&dirty.keys[s * shape.dim], shape.dim, kNaN);
    }
    for_each_cpu_target([&] { ASSERT_EQ(dirty.run(threads(2)), p.run(threads(2))); });
  });
}

// Long rows pass the candidate buffers many times over: rising scores (every key enters), falling
// ones, and saw teeth with many ties.
TEST(IndexTopk, LongRowsOfEveryShapeAreExact) {
  for_each_cpu_target([] {
    for (const int form : {0, 1, 2, 3}) {
      Problem p = make({1, 1, 1, 30000, 700}, IndexDType::kFloat32, true, 0);
      p.q = {1};
      p.weights = {1};
      std::mt19937 random(9);
      for (std::int64_t s = 0; s < p.shape.keys; ++s) {
        p.keys[s] = form == 0   ? static_cast<float>(s)
                    : form == 1 ? static_cast<float>(p.shape.keys - s)
                    : form == 2 ? static_cast<float>(s % 37)
                                : static_cast<float>(random() % 1000);
      }
      EXPECT_EQ(p.run(threads(1)), p.reference()) << "form " << form;
      EXPECT_EQ(p.run(threads(3)), p.reference()) << "form " << form;
    }
  });
}

TEST(IndexTopk, EmptyProblems) {
  for_each_cpu_target([] {
    Problem p = make({0, 4, 16, 50, 8}, IndexDType::kFloat32, true, 1);
    EXPECT_TRUE(p.run(threads(2)).empty());
    p = make({3, 4, 16, 0, 2}, IndexDType::kFloat32, true, 1);
    EXPECT_EQ(p.run(threads(2)), std::vector<std::int32_t>(6, -1));
  });
}

}  // namespace
}  // namespace indexcache
