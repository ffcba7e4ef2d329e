#include <algorithm>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache {
namespace {

void require(bool holds, const char* argument, const char* expected, std::int64_t found) {
  if (holds) return;
  throw expectation_error(fmt::format("index_topk on CUDA: {}", argument), expected,
                          std::to_string(found));
}

void validate(const IndexTopkCudaParams& p) {
  require(p.num_queries >= 0, "queries", "at least 0", p.num_queries);
  require(p.num_heads >= 1 && p.num_heads <= 64, "heads", "1 to 64", p.num_heads);
  require(p.num_keys >= 0, "keys", "at least 0", p.num_keys);
  require(p.top_k >= 1 && p.top_k <= 2048, "k", "1 to 2048", p.top_k);
  const std::int64_t row = p.format == IndexKeyFormat::kE4M3 ? 128 : 256;
  require(p.key_stride >= row && p.key_stride % 16 == 0, "key stride",
          row == 128 ? "a multiple of 16 bytes, at least 128"
                     : "a multiple of 16 bytes, at least 256",
          p.key_stride);
}

// Eight queries share a scan of the keys where their heads fit two matrix tiles of 128 columns.
std::int32_t queries_per_group(const IndexTopkCudaParams& p) {
  return p.format == IndexKeyFormat::kE4M3 && p.num_heads <= 32 ? 8 : 4;
}

}  // namespace

IndexTopkPlan plan_index_topk(const IndexTopkCudaParams& p, std::int32_t processors) {
  validate(p);
  require(processors >= 1, "multiprocessors", "at least 1", processors);
  IndexTopkPlan plan;
  plan.queries_per_group = queries_per_group(p);
  plan.groups = (p.num_queries + plan.queries_per_group - 1) / plan.queries_per_group;
  plan.blocks = std::min(plan.groups, processors);
  plan.workspace_bytes = std::int64_t{plan.blocks} * plan.queries_per_group * kCandidateCapacity * 8;
  return plan;
}

void check_workspace(const IndexTopkCudaParams& p, const IndexTopkPlan& plan) {
  if (p.workspace_bytes >= plan.workspace_bytes) return;
  throw expectation_error("index_topk on CUDA: workspace",
                          fmt::format("{} bytes", plan.workspace_bytes),
                          fmt::format("{}", p.workspace_bytes));
}

void index_topk_refused(const char* what, const char* cuda_message) {
  throw device_error("index_topk on CUDA: {}: {}", what, cuda_message);
}

}  // namespace indexcache
