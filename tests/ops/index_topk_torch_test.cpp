// index_topk's tensor face and its libtorch path.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/index_topk_params.h"

namespace indexcache {
namespace {

struct Inputs {
  at::Tensor q, keys, weights, start, end;
};

// Small integers: scores are exact in any order, so every implementation must give the same sets.
Inputs lattice(std::int64_t m, std::int64_t h, std::int64_t d, std::int64_t n) {
  const auto integers = [](at::IntArrayRef sizes) {
    return at::randint(-3, 4, sizes, at::dtype(at::kFloat));
  };
  return {integers({m, h, d}), integers({n, d}), integers({m, h}),
          at::randint(0, n / 2, {m}, at::dtype(at::kInt)),
          at::randint(n / 3, n + 1, {m}, at::dtype(at::kInt))};
}

at::Tensor reference(const Inputs& in, std::int64_t k) {
  const at::Tensor q = in.q.to(at::kFloat), keys = in.keys.to(at::kFloat).contiguous();
  at::Tensor out = at::zeros({q.size(0), k}, at::dtype(at::kInt));
  index_topk_ref({.num_queries = q.size(0),
                  .num_heads = q.size(1),
                  .head_dim = q.size(2),
                  .num_keys = keys.size(0),
                  .top_k = k,
                  .dtype = IndexDType::kFloat32,
                  .q = q.data_ptr(),
                  .keys = keys.data_ptr(),
                  .key_stride = keys.stride(0),
                  .weights = in.weights.data_ptr<float>(),
                  .start = in.start.data_ptr<std::int32_t>(),
                  .end = in.end.data_ptr<std::int32_t>(),
                  .out = out.data_ptr<std::int32_t>()});
  return out;
}

TEST(IndexTopkTorch, BothPathsEqualTheReference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const std::int64_t k : {1, 7, 40, 300}) {
      Inputs in = lattice(23, 5, 48, 150);
      const at::Tensor expected = reference(in, k);
      const at::Tensor q = in.q.to(dtype), keys = in.keys.to(dtype);
      EXPECT_TRUE(index_topk(q, keys, in.weights, in.start, in.end, k).equal(expected));
      EXPECT_TRUE(index_topk_torch(q, keys, in.weights, in.start, in.end, k).equal(expected));
    }
  }
}

TEST(IndexTopkTorch, OrdersInfinityNaNAndZeros) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Inputs in;
  in.keys = at::tensor({nan, inf, 7.f, -1.f, inf, nan, 0.f, 7.f}).unsqueeze(1);
  in.q = at::ones({1, 1, 1});
  in.weights = at::full({1, 1}, -1.0f);
  in.start = at::zeros({1}, at::dtype(at::kInt));
  in.end = at::full({1}, 8, at::dtype(at::kInt));
  for (std::int64_t k = 1; k <= 9; ++k) {
    const at::Tensor expected = reference(in, k);
    EXPECT_TRUE(index_topk_torch(in.q, in.keys, in.weights, in.start, in.end, k).equal(expected));
    EXPECT_TRUE(index_topk(in.q, in.keys, in.weights, in.start, in.end, k).equal(expected));
  }
}

TEST(IndexTopkTorch, ChunksJoin) {
  const Inputs in = lattice(7, 4, 8, 100);
  const at::Tensor expected = reference(in, 9);
  for (const std::int64_t chunk_floats : {1, 4 * 100 * 2, 4 * 100 * 3, 4 * 100 * 7}) {
    EXPECT_TRUE(index_topk_torch(in.q, in.keys, in.weights, in.start, in.end, 9, chunk_floats)
                    .equal(expected));
  }
}

TEST(IndexTopkTorch, KeysMayBeRowsOfAWiderTensor) {
  Inputs in = lattice(4, 3, 16, 60);
  const at::Tensor wide = at::full({60, 40}, std::numeric_limits<float>::quiet_NaN());
  wide.slice(1, 8, 24).copy_(in.keys);
  EXPECT_TRUE(index_topk(in.q, wide.slice(1, 8, 24), in.weights, in.start, in.end, 12)
                  .equal(reference(in, 12)));
}

TEST(IndexScores, AreTheFormulaInsideTheRangeAndMinusInfinityOutside) {
  Inputs in = lattice(6, 4, 8, 30);
  const at::Tensor scores = index_scores(in.q, in.keys, in.weights, in.start, in.end);
  ASSERT_EQ(scores.sizes(), (at::IntArrayRef{6, 30}));
  for (std::int64_t t = 0; t < 6; ++t) {
    for (std::int64_t s = 0; s < 30; ++s) {
      const bool inside = s >= in.start[t].item<int>() && s < in.end[t].item<int>();
      const double expected = inside
                                  ? in.q[t].mv(in.keys[s]).relu().dot(in.weights[t]).item<double>()
                                  : -std::numeric_limits<double>::infinity();
      EXPECT_EQ(scores[t][s].item<double>(), expected) << t << " " << s;
    }
  }
}

void expect_error(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    FAIL() << "no error, expected one about " << part;
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
  }
}

TEST(IndexTopkTorch, RefusesWhatItCannotDo) {
  const Inputs in = lattice(4, 3, 16, 60);
  const auto call = [&](auto change, std::int64_t k = 5) {
    Inputs changed = in;
    change(changed);
    return [changed, k] {
      index_topk(changed.q, changed.keys, changed.weights, changed.start, changed.end, k);
    };
  };
  expect_error(call([](Inputs& i) { i.q = i.q.to(at::kHalf); }), "index_topk: q: expected");
  expect_error(call([](Inputs& i) { i.q = i.q.transpose(0, 1); }), "index_topk: q: expected");
  expect_error(call([](Inputs& i) { i.keys = i.keys.to(at::kBFloat16); }), "index_topk: keys");
  expect_error(call([](Inputs& i) { i.keys = i.keys.t(); }), "index_topk: keys: expected [N, 16]");
  expect_error(
      call([](Inputs& i) { i.weights = i.weights.slice(0, 0, 3); }),
      "index_topk: weights: expected contiguous fp32 [4, 3] on q's device, found Float [3, 3]");
  expect_error(call([](Inputs& i) { i.start = i.start.to(at::kLong); }), "index_topk: start");
  expect_error(call([](Inputs& i) { i.end = at::full({4}, 61, at::dtype(at::kInt)); }),
               "index_topk: range of query 0: expected start >= 0 and end <= 60");
  expect_error(call([](Inputs& i) { i.start = at::full({4}, -1, at::dtype(at::kInt)); }),
               "found [-1,");
  expect_error(call([](Inputs&) {}, 0), "index_topk: k: expected at least 1, found 0");
}

}  // namespace
}  // namespace indexcache
