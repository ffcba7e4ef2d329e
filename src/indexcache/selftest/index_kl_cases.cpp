#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/xlogy.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "indexcache/ops/index_kl/index_kl_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  std::int64_t batch, num_queries, num_heads, head_dim, num_keys;
  at::ScalarType dtype;
};

struct Tensors {
  at::Tensor mass, q, keys, weights, visible;
};

// q and keys are small integers, so their products are exact in every dtype and no rounding decides
// on which side of relu's bend one lies.
Tensors make_inputs(const Case& c, const at::Generator& generator) {
  const std::int64_t set_shape[] = {c.batch, c.num_queries, c.num_keys};
  const std::int64_t q_shape[] = {c.batch, c.num_queries, c.num_heads, c.head_dim};
  const std::int64_t key_shape[] = {c.batch, c.num_keys, c.head_dim};
  const std::int64_t weight_shape[] = {c.batch, c.num_queries, c.num_heads};
  Tensors in;
  in.visible = at::rand(set_shape, generator) < 0.7;
  in.visible.select(2, 0).fill_(true);
  if (c.num_keys > 1) in.visible.select(2, 1).fill_(false);  // seen by nobody
  in.mass = at::softmax(
      at::randn(set_shape, generator).masked_fill(in.visible.logical_not(), -kInfinity), -1);
  in.q = at::randint(-2, 3, q_shape, generator).to(c.dtype);
  in.keys = at::randint(-2, 3, key_shape, generator).to(c.dtype);
  in.weights =
      at::randn(weight_shape, generator) / std::sqrt(static_cast<double>(c.num_heads * c.head_dim));
  return in;
}

Tensors in_double(const Tensors& in) {
  return {in.mass.to(at::kDouble), in.q.to(at::kDouble), in.keys.to(at::kDouble),
          in.weights.to(at::kDouble), in.visible};
}

IndexKl reference(const Case& c, const Tensors& in) {
  IndexKl out{.kl = at::empty_like(in.weights.select(2, 0).contiguous()),
              .grad_q = at::empty_like(in.q),
              .grad_keys = at::empty_like(in.keys),
              .grad_weights = at::empty_like(in.weights)};
  index_kl_ref({.batch = c.batch,
                .num_queries = c.num_queries,
                .num_heads = c.num_heads,
                .head_dim = c.head_dim,
                .num_keys = c.num_keys,
                .mass = in.mass.const_data_ptr<double>(),
                .q = in.q.const_data_ptr<double>(),
                .keys = in.keys.const_data_ptr<double>(),
                .weights = in.weights.const_data_ptr<double>(),
                .visible = in.visible.const_data_ptr<bool>(),
                .kl = out.kl.data_ptr<double>(),
                .grad_q = out.grad_q.data_ptr<double>(),
                .grad_keys = out.grad_keys.data_ptr<double>(),
                .grad_weights = out.grad_weights.data_ptr<double>()});
  return out;
}

// A score, a sum of H exact products with rounded weights, is off by at most `score_error`; so is
// lse, and a probability relatively by exp(2 score_error) - 1. The rest is the rounding of
// what is kept in the dtype (weights, score gradients, their products, results) and of the sums,
// relative to the same sums with every term's magnitude.
IndexKl bounds(const Case& c, const Tensors& in) {
  const double u = rounding(c.dtype);
  const auto relu = at::einsum("bthd,bsd->bths", {in.q, in.keys}).clamp_min(0);
  const auto hidden = in.visible.logical_not();
  const auto scores =
      at::einsum("bth,bths->bts", {in.weights, relu}).masked_fill(hidden, -kInfinity);
  const auto magnitude = at::einsum("bth,bths->bts", {in.weights.abs(), relu});
  const double score_error = magnitude.max().item<double>() *
                             (static_cast<double>(c.num_heads + 2) * kFloatEpsilon + 2 * u);
  const auto longest = std::max(c.num_keys, c.num_queries * c.num_heads);
  const double sum = static_cast<double>(longest + 8) * kFloatEpsilon;
  const double relative = std::expm1(2 * score_error) + 4 * u + sum;

  const auto grad = at::softmax(scores, -1) + in.mass;  // no less than |softmax - mass|
  const auto live = (relu > 0).to(at::kDouble);
  const auto w = in.weights.abs();
  return {.kl = (at::xlogy(in.mass, in.mass).abs() + in.mass * magnitude)
                    .sum(-1)
                    .add(at::logsumexp(scores, -1).abs())
                    .mul(sum)
                    .add(2 * score_error),
          .grad_q = relative * at::einsum("bth,bts,bths,bsd->bthd", {w, grad, live, in.keys.abs()}),
          .grad_keys = relative * at::einsum("bth,bts,bths,bthd->bsd", {w, grad, live, in.q.abs()}),
          .grad_weights = relative * at::einsum("bts,bths->bth", {grad, relu})};
}

}  // namespace

void index_kl_cases(const SelfTestRun& run, const std::function<decltype(index_kl)>& op) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : {Case{1, 1, 1, 16, 1, dtype}, Case{2, 9, 3, 48, 41, dtype},
                          Case{1, 16, 8, 128, 160, dtype}}) {
      const auto in = make_inputs(c, run.generator);
      const auto result = [&] {
        return op(in.mass.to(run.device), in.q.to(run.device), in.keys.to(run.device),
                  in.weights.to(run.device), in.visible.to(run.device));
      };
      const auto found = result(), again = result();
      const auto wide = in_double(in);
      const auto expected = reference(c, wide), bound = bounds(c, wide);
      Verdict verdict;
      const auto check = [&](const char* name, at::Tensor IndexKl::*part) {
        verdict =
            both(verdict, check_values(name, (found.*part).cpu(), expected.*part, bound.*part));
        verdict = both(verdict, check_same_bits(found.*part, again.*part));
      };
      check("KL", &IndexKl::kl);
      check("gradient of q", &IndexKl::grad_q);
      check("gradient of the keys", &IndexKl::grad_keys);
      check("gradient of the weights", &IndexKl::grad_weights);
      run.report({"index_kl",
                  fmt::format("{}, {} x {} queries x {} keys, {} heads x {}", dtype_text(c.dtype),
                              c.batch, c.num_queries, c.num_keys, c.num_heads, c.head_dim),
                  verdict.worst, verdict.failure});
    }
  }
}

}  // namespace indexcache
