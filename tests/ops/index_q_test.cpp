// index_q against its definition: exact inputs byte for byte, others within the derived bound.
#include "indexcache/ops/index_q/index_q.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include "indexcache/base/error.h"
#include "indexcache/kernels/index_key_type.h"
#include "indexcache/ops/index_q/index_q_params.h"
#include "support/cache_inputs.h"
#include "support/e4m3_rows.h"
#include "support/op_inputs.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using testing::Guarded;
using testing::thrown;
using testing::Values;

struct Problem {
  std::int64_t tokens, heads, num_positions = 61;
  IndexRowDType dtype;
  std::vector<float> q, weights, table;
  std::vector<std::uint16_t> half;
  std::vector<std::int64_t> positions;
  IndexQParams params;

  Problem(std::int64_t tokens, std::int64_t heads, IndexRowDType dtype, Values kind,
          const IndexKeyType& type)
      : tokens(tokens), heads(heads), dtype(dtype) {
    std::mt19937 random(static_cast<unsigned>(tokens * 64 + heads));
    q = testing::cache_values(kind, tokens * heads, kIndexDim, random);
    half = testing::to_bf16(q);
    weights = testing::cache_values(Values::kNormal, tokens * heads, 1, random);
    table = testing::angle_table(kind, num_positions);
    for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(random() % num_positions);
    params = {
        .num_tokens = tokens,
        .num_heads = heads,
        .dtype = dtype,
        .q = dtype == IndexRowDType::kFloat32 ? static_cast<const void*>(q.data()) : half.data(),
        .weights = weights.data(),
        .rope = {table.data(), num_positions, positions.data()},
        .type = type,
        .factor = 0.125f};
  }

  void check(const Parallel& parallel) {
    const std::int64_t rows = tokens * heads;
    Guarded<std::uint8_t> bytes(rows * kIndexDim);
    Guarded<float> scaled(rows);
    params.out = bytes.data(), params.out_weights = scaled.data();
    index_q_cpu(params, parallel);
    std::vector<double> expected(rows * kIndexDim);
    index_q_ref(params, expected.data());
    for (std::int64_t row = 0; row < rows; ++row) {
      double size = 0;
      for (int d = 0; d < kIndexDim; ++d) size += std::abs(q[row * kIndexDim + d]);
      // RoPE: 3 operations on a pair; Hadamard: 7 sums, the factor and its own error.
      const double hadamard = params.type.hadamard == Hadamard::kNone ? 1 : 0.0884;
      const double error = exact() ? 0 : 16 * testing::kHalfUlp * hadamard * size;
      const float weight = weights[row], both = scaled.data()[row];
      float scale = both / (weight * params.factor);
      if (exact()) {
        ASSERT_EQ(both, weight * 0x1p-6f * params.factor);
        scale = 0x1p-6f;
      } else {
        scale = nearest_scale(scale);
        ASSERT_NEAR(both, weight * scale * params.factor, 4 * testing::kHalfUlp * std::abs(both));
      }
      SCOPED_TRACE(::testing::Message() << "row " << row);
      testing::expect_e4m3_block({bytes.data() + row * kIndexDim, kIndexDim}, scale,
                                 {&expected[row * kIndexDim], kIndexDim}, error + 4 * error,
                                 params.type.scale, params.amax_floor);
    }
  }

 private:
  bool exact() const { return is_exact; }
  // The weight's factors cannot be taken out of it without an error: the number of the format beside it.
  float nearest_scale(float scale) const {
    const int bits = zero_bits(params.type.scale);
    if (bits == 0) return scale;
    const std::uint32_t half_unit = std::uint32_t{1} << (bits - 1);
    return std::bit_cast<float>((std::bit_cast<std::uint32_t>(scale) + half_unit) &
                                ~(2 * half_unit - 1));
  }

 public:
  bool is_exact = false;
};

TEST(IndexQ, ExactInputsGiveTheNearestBytes) {
  for (const IndexRowDType dtype : {IndexRowDType::kFloat32, IndexRowDType::kBFloat16}) {
    for (const IndexKeyType& type : index_key_types()) {
      if (type.hadamard != Hadamard::kNone) continue;  // its factor is irrational
      for (const auto& [tokens, heads] : {std::pair{1, 1}, {5, 3}, {40, 8}}) {
        Problem p(tokens, heads, dtype, Values::kExact, type);
        p.is_exact = true;
        for (float& w : p.weights) w = std::exp2(std::round(std::log2(std::abs(w) + 0.1f)));
        p.check(testing::threads(3));
      }
    }
  }
}

TEST(IndexQ, OtherInputsAreWithinTheBound) {
  for (const IndexRowDType dtype : {IndexRowDType::kFloat32, IndexRowDType::kBFloat16}) {
    for (const IndexKeyType& type : index_key_types()) {
      for (const auto& [tokens, heads] : {std::pair{0, 4}, {1, 64}, {17, 5}}) {
        Problem(tokens, heads, dtype, Values::kNormal, type).check(testing::threads(2));
      }
    }
  }
}

// --- The tensor face.
struct Tensors {
  at::Tensor q = at::randn({6, 4, 128}), weights = at::randn({6, 4}), cos_sin = at::ones({9, 64}),
             positions = at::tensor({0, 8, 3, 3, 1, 7}, at::kLong);
};

TEST(IndexQ, ScoresStayWithinTheRoundingOfTheirRows) {
  Tensors in;
  in.cos_sin = at::zeros({9, 64});
  in.cos_sin.narrow(1, 0, 32).fill_(1.0);  // no turn
  for (const IndexKeyType& type : index_key_types()) {
    if (type.hadamard != Hadamard::kNone) continue;
    const IndexQueries out = index_q(in.q, in.weights, in.cos_sin, in.positions, type);
    EXPECT_EQ(out.type, type);
    EXPECT_EQ(out.q.scalar_type(), at::kFloat8_e4m3fn);
    const at::Tensor found = out.q.to(at::kFloat) * out.weights.unsqueeze(2);
    const at::Tensor expected = in.q * in.weights.unsqueeze(2) / std::sqrt(4.0 * 128);
    const at::Tensor amax = expected.abs().amax(2, true);
    EXPECT_TRUE((found - expected).abs().le(amax / 14).all().item<bool>());  // half a step of 2^-3
  }
}

TEST(IndexQ, NonFiniteRowsAreNaN) {
  Tensors in;
  in.q[2][1][77] = std::numeric_limits<float>::infinity();
  const IndexQueries out = index_q(in.q, in.weights, in.cos_sin, in.positions, {});
  const at::Tensor nan = out.q.to(at::kFloat).isnan();
  EXPECT_TRUE(nan[2][1].all().item<bool>());
  EXPECT_EQ(nan.sum().item<int>(), 128);
  EXPECT_TRUE(out.weights.isfinite().all().item<bool>());
}

TEST(IndexQ, SaysWhatIsWrong) {
  const auto message = [](const std::function<void(Tensors&)>& spoil, double floor = 1e-4) {
    Tensors in;
    spoil(in);
    return thrown<InputError>(
        [&] { index_q(in.q, in.weights, in.cos_sin, in.positions, {}, floor); });
  };
  EXPECT_EQ(message([](Tensors& in) { in.positions[1] = 9; }),
            "index_q: positions[1]: expected 0 to 8, found 9");
  EXPECT_EQ(message([](Tensors& in) { in.positions[0] = -1; }),
            "index_q: positions[0]: expected 0 to 8, found -1");
  EXPECT_THAT(message([](Tensors& in) {
                in.q = at::randn({6, 4, 64});
              }),
              ::testing::StartsWith("index_q: q: expected [M, H, 128]"));
  EXPECT_THAT(message([](Tensors& in) { in.q = in.q.to(at::kHalf); }),
              ::testing::StartsWith("index_q: rows: expected contiguous fp32 or bf16"));
  EXPECT_THAT(message([](Tensors& in) {
                in.weights = at::randn({6, 3});
              }),
              ::testing::StartsWith("index_q: weights: expected contiguous fp32 [6, 4]"));
  EXPECT_THAT(message([](Tensors& in) {
                in.cos_sin = at::ones({9, 32});
              }),
              ::testing::StartsWith("index_q: cos_sin: expected contiguous fp32 [P, 64]"));
  EXPECT_THAT(message([](Tensors& in) { in.positions = in.positions.to(at::kInt); }),
              ::testing::StartsWith("index_q: positions: expected contiguous int64 [6]"));
  for (const double floor : {0.0, -1.0, 1e-40, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THAT(message([](Tensors&) {}, floor), ::testing::StartsWith("index_q: amax_floor"));
  }
}

}  // namespace
}  // namespace indexcache
