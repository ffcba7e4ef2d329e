// sparse_mla over paged caches on the CPU: equal, bit for bit, to sparse_mla over the same rows laid
// out plainly, for every way to find them.
#include "indexcache/ops/sparse_mla/sparse_mla_paged.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include "indexcache/base/error.h"
#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/index_union/index_union.h"
#include "indexcache/ops/latent_append/latent_append.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using testing::thrown;

constexpr std::int64_t kKeys = 50, kPageKeys = 8, kTablePages = 7, kHeads = 3;
constexpr double kScale = 1.0 / 24;

// One request: its keys' latents, and where its pages are.
struct Request {
  at::Tensor latents, rope_keys;  // [kKeys, ...] bf16
};

struct Batch {
  std::vector<Request> requests;
  LatentCache cache;
  at::Tensor kv;  // [R, kKeys, 576] as the cache holds it
};

Batch make_batch(LatentFormat format, std::int64_t num_requests) {
  const std::int64_t num_pages = kTablePages * num_requests + 3;
  Batch b;
  // Pages with a gap between them, and NaN where nothing was appended.
  const bool bf16 = format == LatentFormat::kBFloat16;
  b.cache.pages = bf16 ? at::full({num_pages, kPageKeys + 1, 584}, NAN, at::kBFloat16)
                       : at::full({num_pages, kPageKeys + 1, 672}, 0xFF, at::kByte);
  b.cache.pages = b.cache.pages.narrow(1, 0, kPageKeys);
  b.cache.block_table = at::randperm(num_pages)
                            .to(at::kInt)
                            .narrow(0, 0, kTablePages * num_requests)
                            .view({num_requests, kTablePages});
  std::vector<at::Tensor> rows;
  for (std::int64_t r = 0; r < num_requests; ++r) {
    Request request{at::randn({kKeys, 512}).to(at::kBFloat16),
                    at::randn({kKeys, 64}).to(at::kBFloat16)};
    const at::Tensor id = at::arange(kKeys);
    const at::Tensor page =
        (*b.cache.block_table)[r].to(at::kLong).index_select(0, id.div(kPageKeys, "floor"));
    latent_append(request.latents, request.rope_keys, page * kPageKeys + id.remainder(kPageKeys),
                  b.cache.pages);
    at::Tensor own = at::cat({request.latents, request.rope_keys}, 1);
    if (!bf16) {  // what the reader makes of them
      LatentStore store = {.format = format,
                           .data = b.cache.pages.const_data_ptr(),
                           .row_stride = b.cache.pages.stride(1),
                           .page_stride = b.cache.pages.stride(0),
                           .page_shift = 3,
                           .block_table = b.cache.block_table->const_data_ptr<std::int32_t>(),
                           .table_stride = kTablePages,
                           .num_keys = kPageKeys * kTablePages};
      const at::Tensor values = at::empty({kKeys, 576});
      for (std::int64_t s = 0; s < kKeys; ++s) {
        EXPECT_TRUE(read_latent(store, r, s, values.mutable_data_ptr<float>() + s * 576));
      }
      own = values.to(at::kBFloat16);
    }
    rows.push_back(own.unsqueeze(0));
    b.requests.push_back(request);
  }
  b.kv = at::cat(rows);
  return b;
}

void expect_same(const SparseMlaResult& found, const SparseMlaResult& expected) {
  EXPECT_TRUE(found.out.view(at::kShort).equal(expected.out.view(at::kShort)));
  EXPECT_TRUE(found.lse.view(at::kInt).equal(expected.lse.view(at::kInt)));
}

// [M, k] any order, duplicates, -1 anywhere; the second row is empty.
at::Tensor some_indices(std::int64_t queries) {
  at::Tensor indices = at::randint(-5, kKeys, {queries, 20}, at::kInt).clamp_min_(-1);
  if (queries > 1) indices[1].fill_(-1);
  return indices;
}

TEST(SparseMlaPaged, PagesGiveTheBitsOfPlainRows) {
  for (const LatentFormat format : {LatentFormat::kBFloat16, LatentFormat::kE4M3}) {
    const Batch b = make_batch(format, 2);
    const at::Tensor q = at::randn({6, kHeads, 576}).to(at::kBFloat16);
    const at::Tensor indices = some_indices(6), request = at::tensor({1, 0, 0, 1, 1, 0}, at::kInt);
    const SparseMlaResult found = sparse_mla_paged(q, b.cache, request, indices, kScale);
    for (std::int64_t t = 0; t < 6; ++t) {
      const at::Tensor kv = b.kv[request[t].item<int>()];
      const auto row = [&](const at::Tensor& all) { return all.narrow(0, t, 1); };
      expect_same({row(found.out), row(found.lse)},
                  sparse_mla(row(q), kv, row(indices), 512, kScale));
    }
    EXPECT_EQ(found.out[1].abs().max().item<float>(), 0);
    EXPECT_EQ(found.lse[1].max().item<float>(), -std::numeric_limits<float>::infinity());
    // Beyond the table, and in a page below 0: skipped.
    LatentCache holes = b.cache;
    holes.block_table = b.cache.block_table->clone();
    (*holes.block_table)[0][1] = -1;
    at::Tensor cut = indices.masked_fill(indices.ge(8).logical_and(indices.lt(16)), -1);
    at::Tensor beyond = indices.clone();
    beyond[0][3] = kPageKeys * kTablePages;
    cut[0][3] = -1;
    expect_same(sparse_mla_paged(q, holes, std::nullopt, beyond, kScale),
                sparse_mla(q, b.kv[0], cut, 512, kScale));
    // As slots.
    const at::Tensor table = (*b.cache.block_table)[1];
    at::Tensor slots = indices.clone();
    for (std::int64_t t = 0; t < 6; ++t) {
      for (std::int64_t i = 0; i < slots.size(1); ++i) {
        const int id = slots[t][i].item<int>();
        if (id >= 0) slots[t][i] = table[id / 8].item<int>() * 8 + id % 8;
      }
    }
    expect_same(sparse_mla_paged(q, {b.cache.pages}, std::nullopt, slots, kScale),
                sparse_mla(q, b.kv[1], indices, 512, kScale));
  }
}

TEST(SparseMlaPaged, OnePageOfAnySizeIsPlainRows) {
  const Batch b = make_batch(LatentFormat::kBFloat16, 1);
  const at::Tensor q = at::randn({3, kHeads, 576}).to(at::kBFloat16), indices = some_indices(3);
  expect_same(sparse_mla_paged(q, {b.kv}, std::nullopt, indices, kScale),
              sparse_mla(q, b.kv[0], indices, 512, kScale));
}

TEST(SparseMlaPaged, UnionsGiveTheBitsOfTheirSets) {
  const Batch b = make_batch(LatentFormat::kE4M3, 2);
  constexpr std::int64_t kFirst = 5, kSecond = 4, kK = 12;  // queries of the two requests
  std::vector<at::Tensor> rows;
  for (std::int64_t t = 0; t < kFirst + kSecond; ++t) {
    rows.push_back(
        std::get<0>(at::randperm(kKeys).narrow(0, 0, kK).to(at::kInt).sort()).unsqueeze(0));
  }
  at::Tensor sets = at::cat(rows);
  sets[2].fill_(-1);
  const QueryGroups groups = query_groups({{4, kFirst}, {0, kSecond}});
  const at::Tensor begin = at::tensor(groups.begin, at::kInt),
                   request = at::tensor(groups.request, at::kInt);
  const IndexUnion united = index_union(sets, begin);
  const at::Tensor q = at::randn({kFirst + kSecond, kHeads, 576}).to(at::kBFloat16);
  const SparseMlaResult found =
      sparse_mla_union(q, b.cache, begin, request, united.entries, united.counts, kScale);
  const at::Tensor own = at::cat({at::zeros({kFirst}, at::kInt), at::full({kSecond}, 1, at::kInt)});
  expect_same(found, sparse_mla_paged(q, b.cache, own, sets, kScale));
}

TEST(SparseMlaPaged, SaysWhatIsWrong) {
  const Batch b = make_batch(LatentFormat::kBFloat16, 1);
  const at::Tensor q = at::randn({2, kHeads, 576}).to(at::kBFloat16), indices = some_indices(2);
  const auto message = [&](const at::Tensor& queries, const LatentCache& cache,
                           const std::optional<at::Tensor>& request, const at::Tensor& ids) {
    return thrown<InputError>([&] { sparse_mla_paged(queries, cache, request, ids, kScale); });
  };
  EXPECT_THAT(message(q.to(at::kFloat), b.cache, std::nullopt, indices),
              ::testing::StartsWith("sparse_mla: q: expected contiguous bf16"));
  EXPECT_THAT(message(q, {b.cache.pages.to(at::kFloat)}, std::nullopt, indices),
              ::testing::StartsWith("sparse_mla: pages: expected bf16"));
  EXPECT_THAT(message(q, {b.cache.pages.narrow(1, 0, 6)}, std::nullopt, indices),
              ::testing::StartsWith("sparse_mla: pages: expected rows a page"));
  EXPECT_EQ(message(q, b.cache, at::tensor({0, 1}, at::kInt), indices),
            "sparse_mla: request[1]: expected 0 to 0, found 1");
  EXPECT_THAT(message(q, b.cache, std::nullopt, indices.to(at::kLong)),
              ::testing::StartsWith("sparse_mla: indices: expected contiguous int32"));
  LatentCache wrong = b.cache;
  wrong.block_table = *b.cache.block_table + 100;
  EXPECT_THAT(message(q, wrong, std::nullopt, indices.clamp_min(0)),
              ::testing::StartsWith("sparse_mla: block_table: expected pages below 10"));
  EXPECT_THAT(thrown<InputError>([&] {
                sparse_mla_union(q, b.cache, at::tensor({0, 3}, at::kInt), std::nullopt,
                                 at::zeros({1, 6}, at::kInt), at::tensor({2}, at::kInt), kScale);
              }),
              ::testing::StartsWith("sparse_mla: group 0"));
}

}  // namespace
}  // namespace indexcache
