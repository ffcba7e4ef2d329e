#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include "indexcache/ops/index_topk/index_topk_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

enum class Inputs {
  kLattice,  // small integers and power-of-two weights: fp32 scores are exact, ties abound
  kRandom,
};

struct Case {
  std::int64_t num_queries, num_keys, num_heads, head_dim, top_k;
  at::ScalarType dtype;
  Inputs inputs;
};

struct Tensors {
  at::Tensor q, keys, weights, start, end;
};

Tensors make_inputs(const Case& c, const at::Generator& generator) {
  Tensors in;
  const std::int64_t q_shape[] = {c.num_queries, c.num_heads, c.head_dim};
  const std::int64_t key_shape[] = {c.num_keys, c.head_dim};
  const std::int64_t weight_shape[] = {c.num_queries, c.num_heads};
  if (c.inputs == Inputs::kLattice) {
    in.q = at::randint(-2, 3, q_shape, generator);
    in.keys = at::randint(-2, 3, key_shape, generator);
    in.weights = at::randint(-2, 3, weight_shape, generator, at::kFloat);
  } else {
    in.q = at::randn(q_shape, generator);
    in.keys = at::randn(key_shape, generator);
    in.weights = at::randn(weight_shape, generator);
  }
  in.q = in.q.to(c.dtype);
  in.keys = in.keys.to(c.dtype);
  // Ragged ranges; the first is empty, the last is everything.
  in.start = at::randint(0, c.num_keys / 2 + 1, {c.num_queries}, generator, at::kInt);
  in.end = at::randint(c.num_keys / 2, c.num_keys + 1, {c.num_queries}, generator, at::kInt);
  in.end[0] = in.start[0];
  in.start[c.num_queries - 1] = 0;
  in.end[c.num_queries - 1] = c.num_keys;
  return in;
}

at::Tensor reference_sets(const Case& c, const Tensors& in) {
  const auto q = in.q.to(at::kFloat), keys = in.keys.to(at::kFloat);
  auto out = at::empty({c.num_queries, c.top_k}, at::kInt);
  index_topk_ref({.num_queries = c.num_queries,
                  .num_heads = c.num_heads,
                  .head_dim = c.head_dim,
                  .num_keys = c.num_keys,
                  .top_k = c.top_k,
                  .dtype = IndexDType::kFloat32,
                  .q = q.const_data_ptr(),
                  .keys = keys.const_data_ptr(),
                  .key_stride = c.head_dim,
                  .weights = in.weights.const_data_ptr<float>(),
                  .start = in.start.const_data_ptr<std::int32_t>(),
                  .end = in.end.const_data_ptr<std::int32_t>(),
                  .out = out.data_ptr<std::int32_t>()});
  return out;
}

// Against scores in double. A score's bound: H products of a D-term dot product, each term rounded
// once in the product and once per addition, so (D + H + 2) eps times the sum of magnitudes.
Verdict check_random(const Case& c, const Tensors& in, const at::Tensor& out) {
  const auto keys = in.keys.to(at::kDouble), q = in.q.to(at::kDouble),
             weights = in.weights.to(at::kDouble);
  const auto dots = at::einsum("thd,sd->ths", {q, keys});
  const auto magnitudes = at::einsum("thd,sd->ths", {q.abs(), keys.abs()});
  const double relative = kFloatEpsilon * static_cast<double>(c.head_dim + c.num_heads + 2);
  return check_selection(out, in.start, in.end,
                         at::einsum("th,ths->ts", {weights, dots.clamp_min(0)}),
                         at::einsum("th,ths->ts", {weights.abs(), magnitudes}) * relative);
}

}  // namespace

void index_topk_cases(const SelfTestRun& run, const std::function<decltype(index_topk)>& op) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto inputs : {Inputs::kLattice, Inputs::kRandom}) {
      for (const Case& c :
           {Case{2, 1, 1, 64, 1, dtype, inputs}, Case{37, 200, 5, 48, 20, dtype, inputs},
            Case{9, 3000, 32, 128, 64, dtype, inputs},
            Case{3, 5000, 64, 128, 2048, dtype, inputs}}) {
        const auto in = make_inputs(c, run.generator);
        const auto result = [&] {
          return op(in.q.to(run.device), in.keys.to(run.device), in.weights.to(run.device),
                    in.start.to(run.device), in.end.to(run.device), c.top_k)
              .cpu();
        };
        const auto out = result();
        Verdict verdict = c.inputs == Inputs::kRandom ? check_random(c, in, out)
                                                      : check_equal(out, reference_sets(c, in));
        verdict = both(verdict, check_same_bits(out, result()));
        run.report({"index_topk",
                    fmt::format("{}, {} x {} keys, {} heads x {}, k {}, {}", dtype_text(c.dtype),
                                c.num_queries, c.num_keys, c.num_heads, c.head_dim, c.top_k,
                                c.inputs == Inputs::kLattice ? "ties" : "random"),
                    verdict.worst, verdict.failure});
      }
    }
  }
}

}  // namespace indexcache
