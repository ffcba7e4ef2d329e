#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include "indexcache/kernels/latent_row.h"
#include "indexcache/selftest/cases.h"
#include "indexcache/selftest/e4m3_checks.h"
#include "indexcache/selftest/index_inputs.h"

namespace indexcache {
namespace {

constexpr std::int64_t kTokens = 45, kPages = 7, kPageKeys = 8;

// Rows that were written, in the tokens' order, and whether all others kept their bytes.
struct Rows {
  at::Tensor written;  // [kTokens, row bytes] uint8
  Verdict others;
};
Rows rows_of(const at::Tensor& pages, const at::Tensor& slots) {
  const auto bytes = pages.view(at::kByte).reshape({kPages * kPageKeys, -1});
  const auto others = bytes.index_fill(0, slots, 0);
  return {bytes.index_select(0, slots),
          check_equal(others.to(at::kInt), at::zeros(others.sizes(), at::kInt))};
}

Verdict check_e4m3(const at::Tensor& rows, const at::Tensor& latents, const at::Tensor& rope_keys,
                   ScaleFormat scale) {
  Verdict verdict = check_same_bits(rows.narrow(1, kLatentDim + 16, 2 * kRopeDim).contiguous(),
                                    rope_keys.view(at::kByte));
  const auto scales = rows.narrow(1, kLatentDim, 16).contiguous().view(at::kFloat).flatten();
  const auto bytes = rows.narrow(1, 0, kLatentDim).reshape({-1, 128});
  const auto expected = latents.to(at::kDouble).reshape({-1, 128});
  return both(verdict, check_e4m3_rows(bytes, scales, expected,
                                       at::zeros({expected.size(0), 1}, at::kDouble), scale,
                                       kDefaultAmaxFloor));
}

}  // namespace

void latent_append_cases(const SelfTestRun& run, const std::function<decltype(latent_append)>& op) {
  const auto latents =
      index_rows(4 * kTokens, run.generator).view({kTokens, kLatentDim}).to(at::kBFloat16);
  const auto rope_keys = at::randn({kTokens, kRopeDim}, run.generator).to(at::kBFloat16);
  const auto slots = at::randperm(kPages * kPageKeys, run.generator).narrow(0, 0, kTokens);
  const auto append = [&](const at::Tensor& empty, ScaleFormat scale) {
    const auto pages = empty.to(run.device).clone();
    op(latents.to(run.device), rope_keys.to(run.device), slots.to(run.device), pages, scale,
       kDefaultAmaxFloor);
    return pages.cpu();
  };
  const auto report = [&](const std::string& name, const Verdict& verdict) {
    run.report({"latent_append", fmt::format("{}, {} tokens", name, kTokens), verdict.worst,
                verdict.failure});
  };
  const auto bf16 = at::zeros({kPages, kPageKeys, kLatentDim + kRopeDim}, at::kBFloat16);
  const at::Tensor found = append(bf16, ScaleFormat::kBFloat16);
  const Rows rows = rows_of(found, slots);
  Verdict verdict = both(
      rows.others, check_same_bits(rows.written, at::cat({latents, rope_keys}, 1).view(at::kByte)));
  report("bf16", both(verdict, check_same_bits(found, append(bf16, ScaleFormat::kBFloat16))));

  const auto e4m3 =
      at::zeros({kPages, kPageKeys, latent_row_bytes(LatentFormat::kE4M3)}, at::kByte);
  for (const auto& [scale, name] : {std::pair{ScaleFormat::kFloat32, "e4m3, scales fp32"},
                                    {ScaleFormat::kBFloat16, "e4m3, scales bf16"},
                                    {ScaleFormat::kPowerOfTwo, "e4m3, scales ue8m0"}}) {
    const at::Tensor pages = append(e4m3, scale);
    const Rows own = rows_of(pages, slots);
    const Verdict values = both(own.others, check_e4m3(own.written, latents, rope_keys, scale));
    report(name, both(values, check_same_bits(pages, append(e4m3, scale))));
  }
}

}  // namespace indexcache
