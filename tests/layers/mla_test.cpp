#include "indexcache/layers/mla.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace indexcache {
namespace {

constexpr std::int64_t kTokens = 9, kHidden = 12, kQRank = 10;
const MlaShape kShape{.num_heads = 5,
                      .qk_nope_head_dim = 6,
                      .qk_rope_head_dim = 4,
                      .v_head_dim = 7,
                      .kv_lora_rank = 8,
                      .softmax_scale = 0.3,
                      .latent_norm_eps = 1e-6};

MlaWeights random_weights() {
  const auto& s = kShape;
  const auto matrix = [](std::int64_t out, std::int64_t in) {
    return at::randn({out, in}) / std::sqrt(static_cast<double>(in));
  };
  return {.q_a_proj = matrix(kQRank, kHidden),
          .q_a_norm = at::rand({kQRank}) + 0.5,
          .q_b_proj = matrix(s.num_heads * (s.qk_nope_head_dim + s.qk_rope_head_dim), kQRank),
          .kv_a_proj = matrix(s.kv_lora_rank + s.qk_rope_head_dim, kHidden),
          .kv_a_norm = at::rand({s.kv_lora_rank}) + 0.5,
          .kv_b_proj = matrix(s.num_heads * (s.qk_nope_head_dim + s.v_head_dim), s.kv_lora_rank),
          .o_proj = matrix(kHidden, s.num_heads * s.v_head_dim)};
}

RopeTable table() { return make_rope_table({.inv_freq = at::tensor({1.0f, 0.1f})}, 3, kTokens); }

at::Tensor causal_softmax(const at::Tensor& logits) {  // [h, T, T]
  const auto blocked = at::full({kTokens, kTokens}, 1.0).triu(1).to(at::kBool);
  return at::softmax(logits.masked_fill(blocked, -std::numeric_limits<double>::infinity()), -1);
}

// Spec T3: the two forms of the same attention.
TEST(Mla, ExpandedEqualsAbsorbed) {
  const auto weights = random_weights();
  const auto x = at::randn({kTokens, kHidden});
  const auto projected = mla_project(x, weights, kShape, table());

  const auto expanded = mla_expand(projected, weights, kShape);
  const auto probabilities = causal_softmax(
      at::matmul(expanded.q.transpose(0, 1), expanded.k.permute({1, 2, 0})) * kShape.softmax_scale);
  const auto expected =
      at::matmul(probabilities, expanded.v.transpose(0, 1)).transpose(0, 1).flatten(-2);

  const auto query = mla_absorb_query(projected, weights, kShape);
  const auto entries = mla_cache_entry(projected);
  ASSERT_EQ(query.sizes(), at::IntArrayRef({kTokens, kShape.num_heads, 12}));
  const auto absorbed = causal_softmax(at::matmul(query.transpose(0, 1), entries.transpose(0, 1)) *
                                       kShape.softmax_scale);
  const auto attended =
      at::matmul(absorbed, entries.narrow(-1, 0, kShape.kv_lora_rank)).transpose(0, 1);
  const auto found = mla_expand_output(attended, weights, kShape);
  EXPECT_TRUE(found.allclose(expected, 1e-5, 1e-5))
      << (found - expected).abs().max().item<double>();
}

// The RoPE key is not normed and the latent is (spec 2.3).
TEST(Mla, NormsTheLatentsAlone) {
  const auto weights = random_weights();
  const auto x = at::randn({kTokens, kHidden});
  const auto once = mla_project(x, weights, kShape, table());
  const auto doubled = mla_project(x * 2, weights, kShape, table());
  EXPECT_TRUE(once.latent.allclose(doubled.latent, 1e-4, 1e-4));
  EXPECT_TRUE(once.q_latent.allclose(doubled.q_latent, 1e-4, 1e-4));
  EXPECT_TRUE((once.k_rope * 2).allclose(doubled.k_rope, 1e-5, 1e-5));
}

TEST(Mla, BatchedEqualsSingle) {
  const auto weights = random_weights();
  const auto x = at::randn({2, kTokens, kHidden});
  const auto both = mla_expand(mla_project(x, weights, kShape, table()), weights, kShape);
  const auto second = mla_expand(mla_project(x[1], weights, kShape, table()), weights, kShape);
  EXPECT_TRUE(both.q[1].allclose(second.q, 1e-5, 1e-6));
  EXPECT_TRUE(both.k[1].allclose(second.k, 1e-5, 1e-6));
  EXPECT_TRUE(both.v[1].allclose(second.v, 1e-5, 1e-6));
  EXPECT_TRUE(
      mla_absorb_query(mla_project(x, weights, kShape, table()), weights, kShape)[1].allclose(
          mla_absorb_query(mla_project(x[1], weights, kShape, table()), weights, kShape), 1e-5,
          1e-6));
}

}  // namespace
}  // namespace indexcache
