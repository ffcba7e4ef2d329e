// sparse_mla's tensor face and its libtorch path.
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {
namespace {

SparseMlaResult reference(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& indices,
                          std::int64_t value_dim, double scale) {
  const at::Tensor q32 = q.to(at::kFloat).contiguous(), kv32 = kv.to(at::kFloat).contiguous();
  SparseMlaResult result{at::zeros({q.size(0), q.size(1), value_dim}, at::dtype(at::kDouble)),
                         at::zeros({q.size(0), q.size(1)}, at::dtype(at::kDouble))};
  sparse_mla_ref({.num_queries = q.size(0),
                  .num_heads = q.size(1),
                  .dim = q.size(2),
                  .value_dim = value_dim,
                  .num_keys = kv.size(0),
                  .top_k = indices.size(1),
                  .softmax_scale = static_cast<float>(scale),
                  .dtype = SparseMlaDType::kFloat32,
                  .q = q32.data_ptr(),
                  .kv = kv32.data_ptr(),
                  .kv_stride = kv32.stride(0),
                  .indices = indices.data_ptr<std::int32_t>()},
                 result.out.data_ptr<double>(), result.lse.data_ptr<double>());
  return result;
}

TEST(SparseMlaTorch, BothPathsAreCloseToTheReference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor q = at::randn({9, 5, 48}).to(dtype), kv = at::randn({70, 48}).to(dtype);
    const at::Tensor indices = at::randint(-10, 70, {9, 33}, at::dtype(at::kInt));
    indices[4].fill_(-1);
    const double scale = 0.15;
    const SparseMlaResult expected = reference(q, kv, indices, 40, scale);
    const double tolerance = dtype == at::kFloat ? 1e-5 : 2e-2;  // bounds: sparse_mla_test.cpp
    for (const SparseMlaResult& result :
         {sparse_mla(q, kv, indices, 40, scale), sparse_mla_torch(q, kv, indices, 40, scale)}) {
      EXPECT_EQ(result.out.scalar_type(), dtype);
      EXPECT_TRUE(result.out.to(at::kDouble).allclose(expected.out, tolerance, tolerance));
      EXPECT_TRUE(result.lse.to(at::kDouble).allclose(expected.lse, 1e-5, 1e-5));
      EXPECT_TRUE(result.out[4].eq(0).all().item<bool>());
    }
  }
}

// Skipped entries read row 0 in the libtorch path: a NaN there must not show.
TEST(SparseMlaTorch, ChunksJoinAndSkippedEntriesAreSilent) {
  const at::Tensor q = at::randn({7, 2, 64}), kv = at::randn({300, 64});
  kv[0].fill_(std::numeric_limits<double>::quiet_NaN());
  const at::Tensor indices = at::randint(1, 300, {7, 50}, at::dtype(at::kInt));
  indices.slice(1, 10, 40).fill_(-1);
  const SparseMlaResult ours = sparse_mla(q, kv, indices, 64, 0.1);
  for (const std::int64_t chunk_floats : {1, 50 * 64 * 2, 50 * 64 * 3, 50 * 64 * 7}) {
    const SparseMlaResult torch = sparse_mla_torch(q, kv, indices, 64, 0.1, chunk_floats);
    EXPECT_TRUE(torch.out.allclose(ours.out, 1e-4, 1e-5));
    EXPECT_TRUE(torch.lse.allclose(ours.lse, 1e-5, 1e-5));
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

TEST(SparseMlaTorch, RefusesWhatItCannotDo) {
  const at::Tensor q = at::randn({4, 3, 16}), kv = at::randn({30, 16});
  const at::Tensor indices = at::randint(3, 30, {4, 6}, at::dtype(at::kInt));
  expect_error([&] { sparse_mla(q.to(at::kDouble), kv, indices, 8, 1); },
               "sparse_mla: q: expected");
  expect_error([&] { sparse_mla(q, kv.slice(1, 0, 15), indices, 8, 1); },
               "sparse_mla: kv: expected [N, 16]");
  expect_error([&] { sparse_mla(q, kv, indices.to(at::kLong), 8, 1); }, "sparse_mla: indices");
  expect_error([&] { sparse_mla(q, kv, indices.add(27), 8, 1); },
               "sparse_mla: indices: expected rows below 30, found");
  expect_error([&] { sparse_mla(q, kv, indices, 17, 1); },
               "sparse_mla: value_dim: expected 1 to 16, found 17");
  expect_error([&] { sparse_mla(q, kv.clone().set_requires_grad(true), indices, 8, 1); },
               "has no gradient");
}

}  // namespace
}  // namespace indexcache
