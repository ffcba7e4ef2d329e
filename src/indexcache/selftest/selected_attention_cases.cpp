#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "indexcache/ops/selected_attention/selected_attention_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

struct Case {
  std::int64_t batch, num_heads, num_queries, num_keys, dim, value_dim;
  at::ScalarType dtype;
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(dim)); }
};

struct Tensors {
  at::Tensor q, k, v, grad_out, visible;
};

struct Results {
  at::Tensor out, mass, grad_q, grad_k, grad_v;
};

Tensors make_inputs(const Case& c, const at::Generator& generator) {
  const std::int64_t set_shape[] = {c.batch, c.num_queries, c.num_keys};
  const auto draw = [&](std::int64_t rows, std::int64_t dim) {
    const std::int64_t shape[] = {c.batch, c.num_heads, rows, dim};
    return at::randn(shape, generator).to(c.dtype);
  };
  Tensors in{.q = draw(c.num_queries, c.dim),
             .k = draw(c.num_keys, c.dim),
             .v = draw(c.num_keys, c.value_dim),
             .grad_out = draw(c.num_queries, c.value_dim),
             .visible = at::rand(set_shape, generator) < 0.7};
  in.visible.select(2, 0).fill_(true);
  if (c.num_keys > 1) in.visible.select(2, 1).fill_(false);  // seen by nobody
  return in;
}

Tensors in_double(const Tensors& in) {
  return {in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble),
          in.grad_out.to(at::kDouble), in.visible};
}

Results reference(const Case& c, const Tensors& in) {
  Results out{.out = at::empty_like(in.grad_out),
              .mass = at::empty({c.batch, c.num_queries, c.num_keys}, at::kDouble),
              .grad_q = at::empty_like(in.q),
              .grad_k = at::empty_like(in.k),
              .grad_v = at::empty_like(in.v)};
  const SelectedAttentionParams params{.batch = c.batch,
                                       .num_heads = c.num_heads,
                                       .num_queries = c.num_queries,
                                       .num_keys = c.num_keys,
                                       .dim = c.dim,
                                       .value_dim = c.value_dim,
                                       .scale = c.scale(),
                                       .q = in.q.const_data_ptr<double>(),
                                       .k = in.k.const_data_ptr<double>(),
                                       .v = in.v.const_data_ptr<double>(),
                                       .visible = in.visible.const_data_ptr<bool>()};
  selected_attention_ref(params, out.out.data_ptr<double>(), out.mass.data_ptr<double>());
  selected_attention_backward_ref(params, {.grad_out = in.grad_out.const_data_ptr<double>(),
                                           .grad_q = out.grad_q.data_ptr<double>(),
                                           .grad_k = out.grad_k.data_ptr<double>(),
                                           .grad_v = out.grad_v.data_ptr<double>()});
  return out;
}

// A logit is off by at most `logit_error`, a probability relatively by exp(2 logit_error) - 1.
// The rest is the rounding of what is kept in the dtype and of the sums, relative to the same sums
// with every term's magnitude. A logit's gradient p (dp - sum p dp) holds p twice (in itself
// and in `out`) and four rounded values (dp, p and out in the sum, itself); a result is the fifth.
Results bounds(const Case& c, const Tensors& in) {
  const double u = rounding(c.dtype);
  const auto q = in.q.abs(), k = in.k.abs(), v = in.v.abs(), grad_out = in.grad_out.abs();
  const auto magnitude = at::einsum("bhtd,bhsd->bhts", {q, k}) * c.scale();
  const auto logits = at::einsum("bhtd,bhsd->bhts", {in.q, in.k}) * c.scale();
  const double logit_error =
      magnitude.max().item<double>() * static_cast<double>(c.dim + 2) * kFloatEpsilon +
      logits.abs().max().item<double>() * u;
  const auto longest = std::max({c.num_keys, c.num_queries, c.value_dim});
  const double sum = static_cast<double>(longest + c.num_heads + 8) * kFloatEpsilon;
  const double probability = std::expm1(2 * logit_error);
  const double once = probability + 2 * u + sum;
  const double twice = 2 * probability + 5 * u + 2 * sum;

  const auto p = at::softmax(logits.masked_fill(in.visible.logical_not().unsqueeze(1),
                                                -std::numeric_limits<double>::infinity()),
                             -1);
  const auto out = at::einsum("bhts,bhsd->bhtd", {p, v});
  const auto grad_logits =
      p *
      (at::einsum("bhtd,bhsd->bhts", {grad_out, v}) + (grad_out * out).sum(-1, /*keepdim=*/true)) *
      c.scale();
  return {.out = once * out,
          .mass = (probability + sum) * p.mean(1),
          .grad_q = twice * at::einsum("bhts,bhsd->bhtd", {grad_logits, k}),
          .grad_k = twice * at::einsum("bhts,bhtd->bhsd", {grad_logits, q}),
          .grad_v = once * at::einsum("bhts,bhtd->bhsd", {p, grad_out})};
}

}  // namespace

void selected_attention_cases(
    const SelfTestRun& run, const std::function<decltype(selected_attention)>& op,
    const std::function<decltype(selected_attention_backward)>& backward) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : {Case{1, 1, 1, 1, 8, 4, dtype}, Case{2, 3, 9, 41, 48, 32, dtype},
                          Case{1, 4, 16, 160, 192, 128, dtype}}) {
      const auto in = make_inputs(c, run.generator);
      const auto result = [&] {
        const auto q = in.q.to(run.device), k = in.k.to(run.device), v = in.v.to(run.device),
                   visible = in.visible.to(run.device);
        const auto forward = op(q, k, v, visible, c.scale());
        const auto grad =
            backward(in.grad_out.to(run.device), q, k, v, forward.out, visible, c.scale());
        return Results{forward.out, forward.mass, grad.q, grad.k, grad.v};
      };
      const auto found = result(), again = result();
      const auto wide = in_double(in);
      const auto expected = reference(c, wide), bound = bounds(c, wide);
      Verdict verdict;
      const auto check = [&](const char* name, at::Tensor Results::*part) {
        verdict =
            both(verdict, check_values(name, (found.*part).cpu(), expected.*part, bound.*part));
        verdict = both(verdict, check_same_bits(found.*part, again.*part));
      };
      check("output", &Results::out);
      check("mass", &Results::mass);
      check("gradient of q", &Results::grad_q);
      check("gradient of k", &Results::grad_k);
      check("gradient of v", &Results::grad_v);
      run.report(
          {"selected_attention",
           fmt::format("{}, {} x {} queries x {} keys, {} heads x {}/{}", dtype_text(c.dtype),
                       c.batch, c.num_queries, c.num_keys, c.num_heads, c.dim, c.value_dim),
           verdict.worst, verdict.failure});
    }
  }
}

}  // namespace indexcache
