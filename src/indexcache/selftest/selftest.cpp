#include "indexcache/selftest/selftest.h"

#include <ATen/CPUGeneratorImpl.h>

#include <utility>

#include "indexcache/selftest/cases.h"

namespace indexcache {

std::vector<SelfTestCase> run_selftest(at::Device device,
                                       const std::function<void(const SelfTestCase&)>& on_case) {
  std::vector<SelfTestCase> results;
  const SelfTestRun run{.device = device,
                        .generator = at::detail::createCPUGenerator(/*seed=*/1),
                        .report = [&](SelfTestCase result) {
                          results.push_back(std::move(result));
                          if (on_case) on_case(results.back());
                        }};
  index_topk_cases(run);
  index_topk_fp8_cases(run);
  index_overlap_cases(run);
  index_union_cases(run);
  sparse_mla_cases(run);
  sparse_mla_paged_cases(run);
  index_q_cases(run);
  index_k_append_cases(run);
  latent_append_cases(run);
  index_kl_cases(run);
  selected_attention_cases(run);
  return results;
}

}  // namespace indexcache
