// index_topk over fp8 keys on the CPU: the sets of the double reference where scores are exact, from
// contiguous keys and from pages, and caches of another type refused.
#include "indexcache/ops/index_topk/index_topk_fp8.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include "indexcache/base/error.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_k_append/index_k_append.h"
#include "indexcache/ops/index_q/index_q.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/index_topk_params.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using testing::thrown;

constexpr std::int64_t kTopK = 9;
// Weights are scaled by (heads * 128)^-1/2, here 2^-5: scores stay exact, and equal ones tie.
constexpr std::int64_t kHeads = 8;

at::Tensor no_turn(std::int64_t positions) {
  auto table = at::zeros({positions, 64});
  table.narrow(1, 0, 32).fill_(1.0);
  return table;
}

// Small integers, 7 among them: scales are 2^-6, and every score is exact in fp32.
at::Tensor lattice(at::IntArrayRef shape) {
  auto values = at::randint(-3, 4, shape, at::kFloat);
  values.select(-1, 5).fill_(7);
  return values;
}

at::Tensor reference(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& weights,
                     const at::Tensor& start, const at::Tensor& end) {
  at::Tensor out = at::empty({q.size(0), kTopK}, at::kInt);
  index_topk_ref({.num_queries = q.size(0),
                  .num_heads = q.size(1),
                  .head_dim = 128,
                  .num_keys = keys.size(0),
                  .top_k = kTopK,
                  .dtype = IndexDType::kFloat32,
                  .q = q.const_data_ptr(),
                  .keys = keys.const_data_ptr(),
                  .key_stride = 128,
                  .weights = weights.const_data_ptr<float>(),
                  .start = start.const_data_ptr<std::int32_t>(),
                  .end = end.const_data_ptr<std::int32_t>(),
                  .out = out.mutable_data_ptr<std::int32_t>()});
  return out;
}

struct Request {
  at::Tensor q, keys, weights, start, end;
};

Request make_request(std::int64_t tokens, std::int64_t num_keys) {
  Request r{lattice({tokens, kHeads, 128}), lattice({num_keys, 128}),
            at::randint(-2, 3, {tokens, kHeads}, at::kFloat), at::zeros({tokens}, at::kInt),
            at::full({tokens}, num_keys, at::kInt)};
  for (std::int64_t t = 0; t < tokens; ++t) r.start[t] = std::min(3 * t, num_keys);
  return r;
}

IndexQueries queries(const Request& r, const IndexKeyType& type = {}) {
  return index_q(r.q, r.weights, no_turn(1), at::zeros({r.q.size(0)}, at::kLong), type);
}

void append(const Request& r, const at::Tensor& table_row, const IndexKeyPages& cache) {
  const std::int64_t n = r.keys.size(0);
  at::Tensor slots = at::empty({n}, at::kLong);
  for (std::int64_t s = 0; s < n; ++s) {
    slots[s] = table_row[s / 64].item<std::int64_t>() * 64 + s % 64;
  }
  index_k_append(r.keys, no_turn(1), at::zeros({n}, at::kLong), slots, cache);
}

TEST(IndexTopkFp8, ContiguousKeysGiveTheReferencesSets) {
  for (const std::int64_t n : {1, 70, 300}) {
    const Request r = make_request(5, n);
    const at::Tensor scale = at::full({n}, 0x1p-6, at::kFloat);
    const IndexKeyRows keys{(r.keys * 64).to(at::kFloat8_e4m3fn), scale, {}};
    EXPECT_TRUE(index_topk_fp8(queries(r), keys, r.start, r.end, kTopK)
                    .equal(reference(r.q, r.keys, r.weights, r.start, r.end)));
  }
}

TEST(IndexTopkFp8, PagesOfRequestsOfTheirOwnLengthsGiveTheReferencesSets) {
  for (const std::int64_t tokens : {1, 2, 4}) {
    const std::vector<std::int64_t> lengths = {130, 1, 64, 0, 200};
    const auto num_requests = static_cast<std::int64_t>(lengths.size());
    const IndexKeyPages cache{at::full({40, kIndexPageBytes + 16}, 0x7F, at::kByte), {}};  // NaN
    const at::Tensor table =
        at::randperm(40).to(at::kInt).narrow(0, 0, 4 * num_requests).view({-1, 4});
    std::vector<at::Tensor> q, weights, start, end, expected;
    IndexQueries all;
    at::Tensor bytes = at::empty({num_requests * tokens, kHeads, 128}, at::kFloat8_e4m3fn);
    at::Tensor scaled = at::empty({num_requests * tokens, kHeads}),
               first = at::empty({num_requests * tokens}, at::kInt);
    at::Tensor last = first.clone(), sets = at::empty({num_requests * tokens, kTopK}, at::kInt);
    for (std::int64_t i = 0; i < num_requests; ++i) {
      const Request r = make_request(tokens, lengths[i]);
      append(r, table[i], cache);
      const IndexQueries own = queries(r);
      bytes.narrow(0, i * tokens, tokens).copy_(own.q);
      scaled.narrow(0, i * tokens, tokens).copy_(own.weights);
      first.narrow(0, i * tokens, tokens).copy_(r.start);
      last.narrow(0, i * tokens, tokens).copy_(r.end);
      sets.narrow(0, i * tokens, tokens).copy_(reference(r.q, r.keys, r.weights, r.start, r.end));
      // Prefill of this request alone.
      EXPECT_TRUE(index_topk_paged(own, cache, table.narrow(0, i, 1), r.start, r.end, kTopK, 0)
                      .equal(sets.narrow(0, i * tokens, tokens)));
    }
    EXPECT_TRUE(index_topk_paged({bytes, scaled, {}}, cache, table, first, last, kTopK, tokens)
                    .equal(sets));
  }
}

TEST(IndexTopkFp8, AnotherTypeIsRefused) {
  const Request r = make_request(2, 10);
  const IndexKeyType other{.rope = RopeStyle::kHalfSplit, .hadamard = Hadamard::kNormalised};
  const IndexKeyPages cache{at::zeros({1, kIndexPageBytes}, at::kByte), other};
  const at::Tensor table = at::zeros({1, 1}, at::kInt);
  EXPECT_EQ(
      thrown<InputError>(
          [&] { index_topk_paged(queries(r), cache, table, r.start, r.end, kTopK, 0); }),
      "index_topk_paged: type of the queries: expected the cache's, half_split+hadamard, found "
      "interleaved");
  const IndexKeyRows keys{r.keys.to(at::kFloat8_e4m3fn), at::full({10}, 1, at::kFloat), other};
  EXPECT_THAT(thrown<InputError>([&] { index_topk_fp8(queries(r), keys, r.start, r.end, kTopK); }),
              ::testing::StartsWith("index_topk_fp8: type of the queries"));
}

TEST(IndexTopkFp8, SaysWhatIsWrong) {
  const Request r = make_request(4, 10);
  const IndexKeyPages cache{at::zeros({2, kIndexPageBytes}, at::kByte), {}};
  const auto message = [&](const at::Tensor& table, const at::Tensor& end, std::int64_t k,
                           std::int64_t tokens) {
    return thrown<InputError>(
        [&] { index_topk_paged(queries(r), cache, table, r.start, end, k, tokens); });
  };
  const at::Tensor table = at::zeros({1, 1}, at::kInt);
  EXPECT_EQ(message(table + 2, r.end, 3, 0),
            "index_topk_paged: block_table entry 0: expected a page below 2, found 2");
  EXPECT_EQ(message(table, r.end + 60, 3, 0),
            "index_topk_paged: end of request 0: expected at most 64, found 70");
  EXPECT_THAT(message(table, r.end, 3, 1), ::testing::StartsWith("index_topk_paged: block_table"));
  EXPECT_EQ(message(table, r.end, 3, 5),
            "index_topk_paged: tokens_per_request: expected 0 to 4, found 5");
  EXPECT_THAT(message(table, r.end, 0, 0),
              ::testing::StartsWith("index_topk_paged: k: expected 1"));
  EXPECT_THAT(message(table, r.end.to(at::kLong), 3, 0),
              ::testing::StartsWith("index_topk_paged: end: expected contiguous int32 [4]"));
  EXPECT_THAT(message(table.to(at::kLong), r.end, 3, 0),
              ::testing::StartsWith("index_topk_paged: block_table"));
}

TEST(IndexTopkFp8, SeedsChangeNothing) {
  const Request r = make_request(5, 300);
  const IndexKeyRows keys{(r.keys * 64).to(at::kFloat8_e4m3fn), at::full({300}, 0x1p-6), {}};
  const at::Tensor expected = index_topk_fp8(queries(r), keys, r.start, r.end, kTopK);
  const at::Tensor wide = at::randint(-400, 400, {5, 30}, at::kInt);
  for (const at::Tensor& seeds : {expected, wide, wide.narrow(1, 3, 7), wide.narrow(1, 0, 0)}) {
    EXPECT_TRUE(index_topk_fp8(queries(r), keys, r.start, r.end, kTopK, seeds).equal(expected));
  }
  EXPECT_THAT(thrown<InputError>([&] {
                index_topk_fp8(queries(r), keys, r.start, r.end, kTopK, wide.narrow(0, 0, 4));
              }),
              ::testing::StartsWith("index_topk_fp8: seeds: expected int32 [5, k']"));
}

}  // namespace
}  // namespace indexcache
