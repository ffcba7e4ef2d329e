// The cases of every op, a file an op. Each takes the op it tests, so that tests can hand in one
// that is wrong and see it found.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <limits>

#include "indexcache/ops/index_k_append/index_k_append.h"
#include "indexcache/ops/index_kl/index_kl.h"
#include "indexcache/ops/index_overlap/index_overlap.h"
#include "indexcache/ops/index_q/index_q.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/index_topk_fp8.h"
#include "indexcache/ops/index_union/index_union.h"
#include "indexcache/ops/latent_append/latent_append.h"
#include "indexcache/ops/selected_attention/selected_attention.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"
#include "indexcache/ops/sparse_mla/sparse_mla_paged.h"
#include "indexcache/selftest/checks.h"
#include "indexcache/selftest/selftest.h"

namespace indexcache {

struct SelfTestRun {
  at::Device device = at::kCPU;
  at::Generator generator;  // of the inputs, which are drawn on the CPU
  std::function<void(SelfTestCase)> report;
};

void index_topk_cases(const SelfTestRun& run,
                      const std::function<decltype(index_topk)>& op = index_topk);
void index_topk_fp8_cases(
    const SelfTestRun& run, const std::function<decltype(index_topk_paged)>& op = index_topk_paged,
    const std::function<decltype(index_topk_fp8)>& contiguous = index_topk_fp8);
void index_overlap_cases(const SelfTestRun& run,
                         const std::function<decltype(index_overlap)>& op = index_overlap);
void index_union_cases(const SelfTestRun& run,
                       const std::function<decltype(index_union)>& op = index_union);
void sparse_mla_cases(const SelfTestRun& run,
                      const std::function<decltype(sparse_mla)>& op = sparse_mla);
void sparse_mla_paged_cases(
    const SelfTestRun& run, const std::function<decltype(sparse_mla_paged)>& op = sparse_mla_paged,
    const std::function<decltype(sparse_mla_union)>& over_union = sparse_mla_union);
void index_q_cases(const SelfTestRun& run, const std::function<decltype(index_q)>& op = index_q);
void index_k_append_cases(const SelfTestRun& run,
                          const std::function<decltype(index_k_append)>& op = index_k_append);
void latent_append_cases(const SelfTestRun& run,
                         const std::function<decltype(latent_append)>& op = latent_append);
void index_kl_cases(const SelfTestRun& run, const std::function<decltype(index_kl)>& op = index_kl);
void selected_attention_cases(
    const SelfTestRun& run,
    const std::function<decltype(selected_attention)>& op = selected_attention,
    const std::function<decltype(selected_attention_backward)>& backward =
        selected_attention_backward);

// --- What the cases share.
inline constexpr double kFloatEpsilon = std::numeric_limits<float>::epsilon();

inline const char* dtype_text(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bf16" : "fp32";
}
// The relative error of one rounding to the dtype.
inline double rounding(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 0x1p-8 : kFloatEpsilon;
}

}  // namespace indexcache
