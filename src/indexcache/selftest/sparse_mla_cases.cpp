#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <cmath>

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
  out_bound[0].zero_();
  return both(
      check_values("output", found.out.cpu(), out, out_bound),
      check_values("lse", found.lse.cpu(), lse, at::full_like(lse, 2.0 * logit_bound + sum)));
}

}  // namespace

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
