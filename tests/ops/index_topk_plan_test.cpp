// How index_topk's CUDA calls are cut and checked, and their double reference: what needs no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache {
namespace {

constexpr int kProcessors = 132;

IndexTopkCudaParams prefill(int queries, int heads, int keys) {
  IndexTopkCudaParams p;
  p.num_queries = queries;
  p.num_heads = heads;
  p.num_keys = keys;
  p.top_k = 2048;
  p.key_stride = 128;
  return p;
}

IndexTopkCudaParams decode(int requests, int tokens, int heads, int keys) {
  static const std::int32_t table[1] = {};
  IndexTopkCudaParams p = prefill(requests * tokens, heads, keys);
  p.tokens_per_request = tokens;
  p.block_table = table;
  p.table_stride = (keys + 63) / 64;
  p.page_stride = 64 * 132;
  return p;
}

std::string refusal(const IndexTopkCudaParams& p) {
  try {
    plan_index_topk(p, kProcessors);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(IndexTopkPlan, PrefillTakesEightQueriesABlock) {
  const IndexTopkPlan plan = plan_index_topk(prefill(2048, 32, 200704), kProcessors);
  EXPECT_EQ(plan.queries_per_group, 8);
  EXPECT_EQ(plan.groups, 256);
  EXPECT_EQ(plan.pieces, 1);
  EXPECT_EQ(plan.blocks, 132);
  EXPECT_EQ(plan.workspace_bytes, std::int64_t{132} * 8 * 8192 * 8);
  EXPECT_EQ(plan_index_topk(prefill(2048, 64, 200704), kProcessors).queries_per_group, 8);
  IndexTopkCudaParams bf16 = prefill(2048, 64, 200704);
  bf16.format = IndexKeyFormat::kBFloat16;
  bf16.key_stride = 256;
  EXPECT_EQ(plan_index_topk(bf16, kProcessors).queries_per_group, 4);
  bf16.num_heads = 32;
  EXPECT_EQ(plan_index_topk(bf16, kProcessors).queries_per_group, 8);
}

TEST(IndexTopkPlan, TheWorkspaceDoesNotGrowWithTheKeys) {
  const auto bytes = [](int queries, int keys) {
    return plan_index_topk(prefill(queries, 32, keys), kProcessors).workspace_bytes;
  };
  EXPECT_EQ(bytes(2048, 1 << 20), bytes(2048, 1 << 28));
  EXPECT_EQ(bytes(1, 1 << 20), bytes(1, 1 << 28));
}

TEST(IndexTopkPlan, FewGroupsAreCutInPiecesThatFillTheDevice) {
  const IndexTopkPlan one = plan_index_topk(decode(1, 1, 32, 200704), kProcessors);
  EXPECT_EQ(one.groups, 1);
  EXPECT_EQ(one.pieces, 132);
  const IndexTopkPlan sixteen = plan_index_topk(decode(16, 2, 32, 131072), kProcessors);
  EXPECT_EQ(sixteen.groups, 16);
  EXPECT_EQ(sixteen.pieces, 8);
  EXPECT_EQ(sixteen.blocks, 128);
  EXPECT_EQ(sixteen.shared_bytes, std::int64_t{32} * (2048 + 8 * 2) * 8);
  EXPECT_EQ(sixteen.workspace_bytes, sixteen.lists_bytes + sixteen.shared_bytes);
}

TEST(IndexTopkPlan, APieceIsWorthABlock) {
  EXPECT_EQ(plan_index_topk(decode(1, 1, 32, 4096), kProcessors).pieces, 16);
  EXPECT_EQ(plan_index_topk(decode(1, 1, 32, 64), kProcessors).pieces, 1);
  EXPECT_EQ(plan_index_topk(decode(500, 1, 32, 65536), kProcessors).pieces, 1);
}

// Sixteen bytes a group that is cut in pieces: for calls of any shape.
TEST(IndexTopkPlan, TheCountersServeCallsOfAnyShape) {
  for (const IndexTopkCudaParams& p : {prefill(2048, 32, 200704), prefill(528, 32, 1 << 20),
                                       decode(1, 1, 32, 64), decode(66, 4, 32, 65536)}) {
    const IndexTopkPlan plan = plan_index_topk(p, kProcessors);
    EXPECT_EQ(plan.counter_bytes, 132 * 8);
    if (plan.pieces == 1) continue;
    EXPECT_GE(plan.counter_bytes, plan.groups * 16);
  }
}

TEST(IndexTopkPlan, ThePiecesOfAGroupAreNoMoreThanBlocksAndAKernelHasRoomFor) {
  int pieces = 0;
  for (int processors = 2; processors < 600; ++processors) {
    const IndexTopkPlan plan = plan_index_topk(decode(1, 1, 32, 1 << 20), processors);
    EXPECT_EQ(plan.blocks, plan.pieces) << processors;
    EXPECT_LE(plan.pieces, processors);
    pieces = plan.pieces;
  }
  EXPECT_EQ(pieces, kMostPieces);
}

TEST(IndexTopkPlan, NoQueriesNeedNothing) {
  const IndexTopkPlan plan = plan_index_topk(prefill(0, 32, 100), kProcessors);
  EXPECT_EQ(plan.groups, 0);
  EXPECT_EQ(plan.workspace_bytes, 0);
}

TEST(IndexTopkPlan, RefusesWhatTheKernelsCannotServe) {
  EXPECT_EQ(refusal(prefill(8, 64, 100)), "");
  EXPECT_EQ(refusal(prefill(8, 65, 100)), "index_topk on CUDA: heads: expected 1 to 64, found 65");
  EXPECT_NE(refusal(prefill(8, 0, 100)), "");
  IndexTopkCudaParams p = prefill(8, 32, 100);
  p.top_k = 2049;
  EXPECT_EQ(refusal(p), "index_topk on CUDA: k: expected 1 to 2048, found 2049");
  p = prefill(8, 32, 100);
  p.key_stride = 136;
  EXPECT_EQ(
      refusal(p),
      "index_topk on CUDA: key stride: expected a multiple of 16 bytes, at least 128, found 136");
  p.format = IndexKeyFormat::kBFloat16;
  p.key_stride = 128;
  EXPECT_NE(refusal(p), "");
  p = prefill(8, 32, 100);
  p.num_seeds = -1;
  EXPECT_EQ(refusal(p), "index_topk on CUDA: seeds: expected at least 0, found -1");
  p = decode(3, 2, 32, 640);
  EXPECT_EQ(refusal(p), "");
  p.num_queries = 5;
  EXPECT_NE(refusal(p), "");
  p = decode(3, 2, 32, 640);
  p.num_keys = 641;
  EXPECT_NE(refusal(p), "");
  p = decode(3, 2, 32, 640);
  p.page_stride = 64 * 132 + 8;
  EXPECT_NE(refusal(p), "");
  p = decode(3, 2, 32, 640);
  p.format = IndexKeyFormat::kBFloat16;
  EXPECT_NE(refusal(p), "");
}

TEST(IndexTopkPlan, RefusesASmallWorkspace) {
  IndexTopkCudaParams p = prefill(8, 32, 100);
  const IndexTopkPlan plan = plan_index_topk(p, kProcessors);
  p.workspace_bytes = plan.workspace_bytes;
  EXPECT_NO_THROW(check_workspace(p, plan));
  p.workspace_bytes -= 1;
  EXPECT_THROW(check_workspace(p, plan), InputError);
}

TEST(IndexTopkPlan, RefusesPiecesWithoutCounters) {
  IndexTopkCudaParams p = decode(1, 1, 32, 4096);
  const IndexTopkPlan plan = plan_index_topk(p, kProcessors);
  p.workspace_bytes = plan.workspace_bytes;
  EXPECT_THROW(check_workspace(p, plan), InputError);
  char counters;
  p.counters = &counters;
  EXPECT_NO_THROW(check_workspace(p, plan));
}

// Two heads against two keys, worked out by hand: only dots above 0 count, the key's scale last.
TEST(IndexScoreRef, FollowsTheDefinition) {
  constexpr std::uint8_t kOne = 0x38, kMinusTwo = 0xC0, kHalf = 0x30;
  std::vector<std::uint8_t> q(2 * 128, 0), keys(2 * 128, 0);
  q[0] = kOne, q[1] = kMinusTwo;    // head 0
  q[128] = kHalf;                   // head 1
  keys[0] = kOne, keys[1] = kHalf;  // key 0: dots 0 and 1/2
  keys[128] = kOne;                 // key 1: dots 1 and 1/2
  const std::vector<float> weights = {3, -2}, scale = {4, 0.5f};
  IndexTopkCudaParams p = prefill(1, 2, 2);
  p.q = q.data();
  p.keys = keys.data();
  p.weights = weights.data();
  p.key_scale = scale.data();
  EXPECT_EQ(index_score_ref(p, 0, 0).score, 4 * (3 * 0 + -2 * 0.5));
  EXPECT_EQ(index_score_ref(p, 0, 0).magnitude, 4 * (3 * 2 + 2 * 0.5));
  EXPECT_EQ(index_score_ref(p, 0, 1).score, 0.5 * (3 * 1 + -2 * 0.5));
}

}  // namespace
}  // namespace indexcache
