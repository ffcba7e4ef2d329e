#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "indexcache/ops/sparse_mla/sparse_mla_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

struct Case {
  std::int64_t num_queries, num_keys, num_heads, dim, value_dim, top_k;
  at::ScalarType dtype;
};

struct Tensors {
  at::Tensor q, kv, indices;
};

Tensors make_inputs(const Case& c, const at::Generator& generator) {
  const std::int64_t q_shape[] = {c.num_queries, c.num_heads, c.dim};
  const std::int64_t kv_shape[] = {c.num_keys, c.dim};
  const std::int64_t set_shape[] = {c.num_queries, c.top_k};
  Tensors in;
  in.q = at::randn(q_shape, generator).to(c.dtype);
  in.kv = at::randn(kv_shape, generator).to(c.dtype);
  in.indices = at::randint(-c.num_keys / 8, c.num_keys, set_shape, generator, at::kInt);
  in.indices[0].fill_(-1);
  return in;
}

Verdict check(const Case& c, const Tensors& in, double scale, const SparseMlaResult& found) {
  const auto q = in.q.to(at::kFloat), kv = in.kv.to(at::kFloat);
  const auto out = at::empty({c.num_queries, c.num_heads, c.value_dim}, at::kDouble);
  const auto lse = at::empty({c.num_queries, c.num_heads}, at::kDouble);
  sparse_mla_ref({.num_queries = c.num_queries,
                  .num_heads = c.num_heads,
                  .dim = c.dim,
                  .value_dim = c.value_dim,
                  .num_keys = c.num_keys,
                  .top_k = c.top_k,
                  .softmax_scale = static_cast<float>(scale),
                  .dtype = SparseMlaDType::kFloat32,
                  .q = q.const_data_ptr(),
                  .kv = kv.const_data_ptr(),
                  .kv_stride = c.dim,
                  .indices = in.indices.const_data_ptr<std::int32_t>()},
                 out.data_ptr<double>(), lse.data_ptr<double>());

  // Logits of unit variance, |logit| < 8, off by 8 (dim + 2) eps; that moves each probability by
  // twice as much relatively; outputs are averages of values below 6. bf16 adds the rounding of
  // probabilities and outputs. Empty rows are exactly 0 and -inf.
  const double sum = static_cast<double>(c.top_k) * kFloatEpsilon;
  const double logit_bound = 8.0 * static_cast<double>(c.dim + 2) * kFloatEpsilon;
  auto out_bound = at::full_like(out, 6.0 * (2.0 * logit_bound + 2.0 * rounding(c.dtype) + sum));
  out_bound.masked_fill_(lse.isneginf().unsqueeze(2), 0.0);
  return both(
      check_values("output", found.out.cpu(), out, out_bound),
      check_values("lse", found.lse.cpu(), lse, at::full_like(lse, 2.0 * logit_bound + sum)));
}

// --- Caches in pages.
constexpr std::int64_t kPageKeys = 16;

// Latents that both formats hold exactly: e4m3 of four times the value, its scale 1/4.
struct Pages {
  at::Tensor kv;            // [num_keys, 576] bf16
  at::Tensor pages, table;  // shuffled, others of NaN between them; [1, num_keys / 16]
};

Pages make_pages(std::int64_t num_keys, LatentFormat format, const at::Generator& generator) {
  const std::int64_t used = num_keys / kPageKeys, all = used + 4;
  const auto bytes = (4 * at::randn({num_keys, kLatentDim}, generator)).to(at::kFloat8_e4m3fn);
  const auto rope = at::randn({num_keys, kRopeDim}, generator).to(at::kBFloat16);
  Pages p;
  p.kv = at::cat({(bytes.to(at::kFloat) / 4).to(at::kBFloat16), rope}, 1);
  at::Tensor rows = p.kv.view(at::kByte);
  if (format == LatentFormat::kE4M3) {
    const auto scale = at::full({num_keys, 4}, 0.25, at::kFloat);
    rows = at::cat({bytes.view(at::kByte), scale.view(at::kByte), rope.view(at::kByte)}, 1);
  }
  const auto order = at::randperm(all, generator).narrow(0, 0, used);
  p.pages = at::full({all, kPageKeys, rows.size(1)}, 0xFF, at::kByte);
  p.pages.index_copy_(0, order, rows.view({used, kPageKeys, -1}));
  if (format == LatentFormat::kBFloat16) p.pages = p.pages.view(at::kBFloat16);
  p.table = order.to(at::kInt).unsqueeze(0);
  return p;
}

// [queries, k] ascending; the second row is short.
at::Tensor make_sets(std::int64_t queries, std::int64_t k, std::int64_t num_keys,
                     const at::Generator& generator) {
  const auto sets = at::empty({queries, k}, at::kInt);
  for (std::int64_t t = 0; t < queries; ++t) {
    const auto some = at::randperm(num_keys, generator).narrow(0, 0, k).to(at::kInt);
    sets[t].copy_(std::get<0>(some.sort()));
  }
  if (queries > 1) sets[1].narrow(0, k / 2, k - k / 2).fill_(-1);
  return sets;
}

// Groups of three, one and two queries.
at::Tensor group_begin(std::int64_t queries) {
  std::vector<std::int64_t> begin = {0};
  for (std::int64_t t = 0; t < queries; t += 6) begin.insert(begin.end(), {t + 3, t + 4, t + 6});
  return at::tensor(begin, at::kInt);
}

}  // namespace

void sparse_mla_paged_cases(const SelfTestRun& run,
                            const std::function<decltype(sparse_mla_paged)>& op,
                            const std::function<decltype(sparse_mla_union)>& over_union) {
  const double scale = 1.0 / 24;
  struct Shape {
    LatentFormat format;
    std::int64_t queries;  // 30 read the keys so often that e4m3 ones are expanded
  };
  for (const auto [format, queries] :
       {Shape{LatentFormat::kBFloat16, 6}, {LatentFormat::kE4M3, 6}, {LatentFormat::kE4M3, 30}}) {
    const auto begin = group_begin(queries);
    for (const std::int64_t heads : {20, 64}) {
      const Case c{queries, 160, heads, kLatentDim + kRopeDim, kLatentDim, 70, at::kBFloat16};
      const Pages cache = make_pages(c.num_keys, format, run.generator);
      Tensors in = make_inputs(c, run.generator);
      in.kv = cache.kv;
      Tensors united = in;
      united.indices = make_sets(c.num_queries, c.top_k, c.num_keys, run.generator);
      const IndexUnion entries = index_union(united.indices, begin);
      const auto there = [&](const at::Tensor& tensor) { return tensor.to(run.device); };
      const LatentCache pages{there(cache.pages), there(cache.table)};
      for (const EntrySplit split : {EntrySplit::kWhole, EntrySplit::kCluster}) {
        const auto by_sets = [&] {
          return op(there(in.q), pages, std::nullopt, there(in.indices), scale, split);
        };
        const auto by_union = [&] {
          return over_union(there(in.q), pages, there(begin), std::nullopt, there(entries.entries),
                            there(entries.counts), scale, split);
        };
        const auto found = by_sets(), again = by_sets();
        Verdict verdict = check(c, in, scale, found);
        verdict = both(verdict, check_same_bits(found.out, again.out));
        verdict = both(verdict, check_same_bits(found.lse, again.lse));
        verdict = both(verdict, check(c, united, scale, by_union()));
        run.report(
            {"sparse_mla",
             fmt::format("pages of {}, {} x {} keys, {} heads, k {}, {}",
                         format == LatentFormat::kE4M3 ? "e4m3" : "bf16", c.num_queries, c.num_keys,
                         heads, c.top_k, split == EntrySplit::kWhole ? "whole" : "cluster"),
             verdict.worst, verdict.failure});
      }
    }
  }
}

void sparse_mla_cases(const SelfTestRun& run, const std::function<decltype(sparse_mla)>& op) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : {Case{2, 8, 1, 48, 32, 3, dtype}, Case{17, 500, 5, 576, 512, 33, dtype},
                          Case{5, 4000, 20, 576, 512, 2048, dtype}}) {
      const double scale = 1.0 / std::sqrt(static_cast<double>(c.dim));
      const auto in = make_inputs(c, run.generator);
      const auto result = [&] {
        return op(in.q.to(run.device), in.kv.to(run.device), in.indices.to(run.device), c.value_dim,
                  scale);
      };
      const auto found = result(), again = result();
      Verdict verdict = check(c, in, scale, found);
      verdict = both(verdict, check_same_bits(found.out, again.out));
      verdict = both(verdict, check_same_bits(found.lse, again.lse));
      run.report({"sparse_mla",
                  fmt::format("{}, {} x {} keys, {} heads, {}/{}, k {}", dtype_text(c.dtype),
                              c.num_queries, c.num_keys, c.num_heads, c.dim, c.value_dim, c.top_k),
                  verdict.worst, verdict.failure});
    }
  }
}

}  // namespace indexcache
