#include <algorithm>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache {
namespace {

constexpr std::int64_t kPageBytes = 64 * (128 + 4);
constexpr std::int32_t kLeastPiece = 256;  // keys worth a block of their own
// With pieces a group has at least two blocks, and 16 bytes of counters.
constexpr std::int64_t kCounterBytes = 8;

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
  require(p.tokens_per_request >= 0 && p.tokens_per_request <= 4, "tokens per request", "0 to 4",
          p.tokens_per_request);
  if (p.tokens_per_request > 0) {
    require(p.num_queries % p.tokens_per_request == 0, "queries",
            "a multiple of the tokens per request", p.num_queries);
  }
  require(p.num_seeds >= 0, "seeds", "at least 0", p.num_seeds);
  const bool e4m3 = p.format == IndexKeyFormat::kE4M3;
  if (p.block_table != nullptr) {
    require(e4m3, "pages", "e4m3 keys", static_cast<std::int64_t>(p.format));
    require(p.page_stride >= kPageBytes && p.page_stride % 16 == 0, "page stride",
            "a multiple of 16 bytes, at least 8448", p.page_stride);
    require(p.num_keys <= std::int64_t{64} * p.table_stride, "keys", "at most 64 a table entry",
            p.num_keys);
    return;
  }
  require(p.key_stride >= (e4m3 ? 128 : 256) && p.key_stride % 16 == 0, "key stride",
          e4m3 ? "a multiple of 16 bytes, at least 128" : "a multiple of 16 bytes, at least 256",
          p.key_stride);
}

// Eight queries share a scan of the keys. Of bf16 ones with many heads, four: all columns of eight do not
// fit in shared memory. Few tokens take fewer columns (e4m3; bf16 keys have no layouts of their own for
// them).
std::int32_t columns_per_group(const IndexTopkCudaParams& p) {
  if (p.format == IndexKeyFormat::kBFloat16) return p.num_heads <= 32 ? 8 : 4;
  switch (p.tokens_per_request) {
    case 0:
      return 8;
    case 1:
    case 2:
      return p.tokens_per_request;
    default:
      return 4;
  }
}

std::int64_t aligned(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

IndexTopkPlan plan_index_topk(const IndexTopkCudaParams& p, std::int32_t processors) {
  validate(p);
  require(processors >= 1, "multiprocessors", "at least 1", processors);
  IndexTopkPlan plan;
  plan.counter_bytes = aligned(kCounterBytes * processors);
  plan.columns_per_group = columns_per_group(p);
  plan.queries_per_group = p.tokens_per_request > 0 ? p.tokens_per_request : plan.columns_per_group;
  plan.groups = (p.num_queries + plan.queries_per_group - 1) / plan.queries_per_group;
  if (plan.groups == 0) return plan;
  plan.pieces =
      std::clamp(p.num_keys / kLeastPiece, 1, std::clamp(processors / plan.groups, 1, kMostPieces));
  plan.blocks = std::min(plan.groups * plan.pieces, processors);
  plan.lists_bytes = std::int64_t{plan.blocks} * plan.columns_per_group * kCandidateCapacity * 8;
  if (plan.pieces > 1) {
    plan.shared_bytes = std::int64_t{p.num_queries} * (kMostShared + plan.pieces * 2) * 8;
  }
  plan.workspace_bytes = plan.lists_bytes + plan.shared_bytes;
  return plan;
}

void check_workspace(const IndexTopkCudaParams& p, const IndexTopkPlan& plan) {
  if (plan.pieces > 1 && p.counters == nullptr) {
    throw expectation_error("index_topk on CUDA: counters",
                            fmt::format("{} bytes", plan.counter_bytes), "none");
  }
  if (p.workspace_bytes >= plan.workspace_bytes) return;
  throw expectation_error("index_topk on CUDA: workspace",
                          fmt::format("{} bytes", plan.workspace_bytes),
                          fmt::format("{}", p.workspace_bytes));
}

void index_topk_refused(const char* what, const char* cuda_message) {
  throw device_error("index_topk on CUDA: {}: {}", what, cuda_message);
}

}  // namespace indexcache
