#include "indexcache/selftest/selftest.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/index_topk_params.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {
namespace {

constexpr double kFloatEpsilon = std::numeric_limits<float>::epsilon();

enum class Inputs {
  kLattice,  // small integers and power-of-two weights: fp32 scores are exact, ties abound
  kRandom,
};

struct IndexTopkCase {
  std::int64_t num_queries, num_keys, num_heads, head_dim, top_k;
  at::ScalarType dtype;
  Inputs inputs;
};

struct IndexTopkInputs {
  at::Tensor q, keys, weights, start, end;
};

std::string dtype_text(at::ScalarType dtype) { return dtype == at::kBFloat16 ? "bf16" : "fp32"; }

IndexTopkInputs make_inputs(const IndexTopkCase& c, at::Generator generator) {
  IndexTopkInputs in;
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

at::Tensor reference_sets(const IndexTopkCase& c, const IndexTopkInputs& in) {
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

// One row of a result against the scores in double and the rounding bound of each.
std::string check_row(const std::int32_t* row, const IndexTopkCase& c, std::int64_t start,
                      std::int64_t end, const double* score, const double* bound) {
  const auto available = std::max<std::int64_t>(end - start, 0);
  const auto kept = std::min(c.top_k, available);
  std::vector<bool> chosen(available);
  for (std::int64_t i = 0; i < c.top_k; ++i) {
    if (i >= kept) {
      if (row[i] != -1) return fmt::format("entry {}: expected -1, found {}", i, row[i]);
      continue;
    }
    if (row[i] < 0 || row[i] >= available || (i > 0 && row[i] <= row[i - 1])) {
      return fmt::format("entry {}: expected ascending indices below {}, found {}", i, available,
                         row[i]);
    }
    chosen[row[i]] = true;
  }
  double worst_kept = std::numeric_limits<double>::infinity();
  double best_dropped = -worst_kept;
  for (std::int64_t s = 0; s < available; ++s) {
    if (chosen[s]) {
      worst_kept = std::min(worst_kept, score[start + s] + bound[start + s]);
    } else {
      best_dropped = std::max(best_dropped, score[start + s] - bound[start + s]);
    }
  }
  if (best_dropped > worst_kept) {
    return fmt::format("a key of score {} was left out, one of {} kept", best_dropped, worst_kept);
  }
  return "";
}

// Row by row against double scores. A score's bound: H products of a D-term dot product, each term
// rounded once in the product and once per addition, so (D + H + 2) eps times the sum of
// magnitudes.
std::string check_random(const IndexTopkCase& c, const IndexTopkInputs& in, const at::Tensor& out) {
  const auto wide_keys = in.keys.to(at::kDouble), wide_q = in.q.to(at::kDouble);
  const auto weights = in.weights.to(at::kDouble);
  for (std::int64_t t = 0; t < c.num_queries; ++t) {
    const auto dots = wide_q[t].matmul(wide_keys.t());                   // [H, N]
    const auto magnitude = wide_q[t].abs().matmul(wide_keys.abs().t());  // [H, N]
    const auto scores = weights[t].matmul(dots.clamp_min(0)).contiguous();
    const auto bound = (weights[t].abs().matmul(magnitude) *
                        (kFloatEpsilon * static_cast<double>(c.head_dim + c.num_heads + 2)))
                           .contiguous();
    const auto failure = check_row(out[t].const_data_ptr<std::int32_t>(), c,
                                   in.start[t].item<std::int64_t>(), in.end[t].item<std::int64_t>(),
                                   scores.const_data_ptr<double>(), bound.const_data_ptr<double>());
    if (!failure.empty()) return fmt::format("query {}: {}", t, failure);
  }
  return "";
}

SelfTestCase run_index_topk(const IndexTopkCase& c, at::Device device, at::Generator generator) {
  SelfTestCase result{
      .op = "index_topk",
      .name = fmt::format("{}, {} x {} keys, {} heads x {}, k {}, {}", dtype_text(c.dtype),
                          c.num_queries, c.num_keys, c.num_heads, c.head_dim, c.top_k,
                          c.inputs == Inputs::kLattice ? "ties" : "random")};
  const auto in = make_inputs(c, generator);
  const auto run = [&] {
    return index_topk(in.q.to(device), in.keys.to(device), in.weights.to(device),
                      in.start.to(device), in.end.to(device), c.top_k)
        .cpu();
  };
  const auto out = run();
  if (!run().equal(out)) {
    result.failure = "a second run gave another result";
  } else if (c.inputs == Inputs::kRandom) {
    result.failure = check_random(c, in, out);
  } else if (const auto expected = reference_sets(c, in); !out.equal(expected)) {
    const auto where = (out != expected).nonzero()[0];
    const auto t = where[0].item<std::int64_t>(), i = where[1].item<std::int64_t>();
    result.failure = fmt::format("query {}, entry {}: expected {}, found {}", t, i,
                                 expected[t][i].item<int>(), out[t][i].item<int>());
  }
  return result;
}

struct SparseMlaCase {
  std::int64_t num_queries, num_keys, num_heads, dim, value_dim, top_k;
  at::ScalarType dtype;
};

SelfTestCase run_sparse_mla(const SparseMlaCase& c, at::Device device, at::Generator generator) {
  SelfTestCase result{
      .op = "sparse_mla",
      .name = fmt::format("{}, {} x {} keys, {} heads, {}/{}, k {}", dtype_text(c.dtype),
                          c.num_queries, c.num_keys, c.num_heads, c.dim, c.value_dim, c.top_k)};
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.dim));
  const std::int64_t q_shape[] = {c.num_queries, c.num_heads, c.dim};
  const std::int64_t kv_shape[] = {c.num_keys, c.dim};
  const std::int64_t set_shape[] = {c.num_queries, c.top_k};
  const auto q = at::randn(q_shape, generator).to(c.dtype);
  const auto kv = at::randn(kv_shape, generator).to(c.dtype);
  auto indices = at::randint(-c.num_keys / 8, c.num_keys, set_shape, generator, at::kInt);
  indices[0].fill_(-1);

  const auto run = [&] {
    return sparse_mla(q.to(device), kv.to(device), indices.to(device), c.value_dim, scale);
  };
  const auto found = run();
  if (const auto again = run(); !again.out.equal(found.out) || !again.lse.equal(found.lse)) {
    result.failure = "a second run gave another result";
    return result;
  }
  const auto wide_q = q.to(at::kFloat), wide_kv = kv.to(at::kFloat);
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
                  .q = wide_q.const_data_ptr(),
                  .kv = wide_kv.const_data_ptr(),
                  .kv_stride = c.dim,
                  .indices = indices.const_data_ptr<std::int32_t>()},
                 out.data_ptr<double>(), lse.data_ptr<double>());

  // Logits of unit variance, |logit| < 8, off by 8 (dim + 2) eps; that moves each probability by
  // twice as much relatively; outputs are averages of values below 6. bf16 adds the rounding of
  // probabilities and outputs, 2^-8 each.
  const double logit_bound = 8.0 * static_cast<double>(c.dim + 2) * kFloatEpsilon;
  const double rounding = c.dtype == at::kBFloat16 ? 0x1p-8 : kFloatEpsilon;
  const double out_bound =
      6.0 * (2.0 * logit_bound + 2.0 * rounding + static_cast<double>(c.top_k) * kFloatEpsilon);
  const double out_error = (found.out.cpu().to(at::kDouble) - out).abs().max().item<double>();
  const auto full_rows = lse.narrow(0, 1, c.num_queries - 1);
  const double lse_error =
      (found.lse.cpu().narrow(0, 1, c.num_queries - 1) - full_rows).abs().max().item<double>();
  const double lse_bound = 2.0 * logit_bound + static_cast<double>(c.top_k) * kFloatEpsilon;
  result.worst = std::max(out_error / out_bound, lse_error / lse_bound);
  const bool empty_row =
      found.out[0].cpu().eq(0).all().item<bool>() &&
      found.lse[0].cpu().eq(-std::numeric_limits<double>::infinity()).all().item<bool>();
  if (!empty_row) {
    result.failure = "an empty row: expected output 0 and lse -inf";
  } else if (!(result.worst <= 1.0)) {
    result.failure = fmt::format(
        "expected errors below {:.2g} (output) and {:.2g} (lse), found {:.2g} and {:.2g}",
        out_bound, lse_bound, out_error, lse_error);
  }
  return result;
}

}  // namespace

std::vector<SelfTestCase> run_selftest(at::Device device,
                                       const std::function<void(const SelfTestCase&)>& on_case) {
  auto generator = at::detail::createCPUGenerator(/*seed=*/1);
  std::vector<SelfTestCase> results;
  const auto add = [&](SelfTestCase result) {
    results.push_back(std::move(result));
    if (on_case) on_case(results.back());
  };
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto inputs : {Inputs::kLattice, Inputs::kRandom}) {
      for (const IndexTopkCase& c : {IndexTopkCase{2, 1, 1, 64, 1, dtype, inputs},
                                     IndexTopkCase{37, 200, 5, 48, 20, dtype, inputs},
                                     IndexTopkCase{9, 3000, 32, 128, 64, dtype, inputs},
                                     IndexTopkCase{3, 5000, 64, 128, 2048, dtype, inputs}}) {
        add(run_index_topk(c, device, generator));
      }
    }
    for (const SparseMlaCase& c :
         {SparseMlaCase{2, 8, 1, 48, 32, 3, dtype}, SparseMlaCase{17, 500, 5, 576, 512, 33, dtype},
          SparseMlaCase{5, 4000, 20, 576, 512, 2048, dtype}}) {
      add(run_sparse_mla(c, device, generator));
    }
  }
  return results;
}

}  // namespace indexcache
