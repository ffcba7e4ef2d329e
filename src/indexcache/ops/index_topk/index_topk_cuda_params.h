// index_topk on Hopper: the arguments of the fused kernels for head_dim 128, and how a call is cut.
// Torch-free, and free of CUDA's headers: the plan is host logic. Semantics in index_topk.h.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t

namespace indexcache {

enum class IndexKeyFormat { kE4M3, kBFloat16 };

// Device pointers. q, keys and key_scale as their format says:
//   kE4M3      q [M, H, 128] e4m3 (its scale folded into the weights), keys [N, 128] e4m3,
//              key_scale [N] fp32 > 0: the score is key_scale[s] * sum_h weights[h] relu(q[h] . k[s])
//   kBFloat16  q and keys bf16, key_scale null
// q, keys and key_scale are aligned to 16 bytes.
//
// Pages (e4m3 only), where block_table is not null: key s of a request is at s % 64 of the page
// block_table[request * table_stride + s / 64], which begins page * page_stride bytes after `keys` and
// holds 64 x 128 e4m3, then 64 fp32 scales; num_keys is the most keys a request may have,
// 64 * table_stride. Only entries of pages that hold keys of a range are read.
//
// Requests, where tokens_per_request is 1 to 4 (decode): queries come in groups of so many, group r
// belongs to request r and reads row r of the block table. Where it is 0, all queries are of one
// request.
//
// Seeds, where seeds is not null: keys that a query's best are likely among, such as an earlier layer's
// set, relative to start and in any order. Those that are negative, repeated or outside the query's range
// do not count. They change the time only, never the result.
struct IndexTopkCudaParams {
  IndexKeyFormat format = IndexKeyFormat::kE4M3;
  std::int32_t num_queries = 0;  // M
  std::int32_t num_heads = 0;    // H, 1 to 64
  std::int32_t num_keys = 0;     // N
  std::int32_t top_k = 0;        // k, 1 to 2048
  const void* q = nullptr;
  const void* keys = nullptr;
  std::int64_t key_stride = 0;          // bytes from key to key, a multiple of 16; not for pages
  const float* key_scale = nullptr;     // [N]
  const float* weights = nullptr;       // [M, H]
  const std::int32_t* start = nullptr;  // [M], >= 0; null: all 0
  const std::int32_t* end = nullptr;    // [M], <= N
  std::int32_t* out = nullptr;          // [M, k]
  const std::int32_t* block_table = nullptr;
  std::int32_t table_stride = 0;
  std::int64_t page_stride = 0;  // bytes, a multiple of 16
  std::int32_t tokens_per_request = 0;
  const std::int32_t* seeds = nullptr;  // [M, num_seeds]
  std::int32_t num_seeds = 0;           // at least 0
  std::int64_t seed_stride = 0;         // from query to query
  void* workspace = nullptr;            // plan.workspace_bytes, aligned to 16 bytes, any content
  std::int64_t workspace_bytes = 0;
  // plan.counter_bytes, aligned to 16 bytes: zero when it is first used, and then the calls' own. Calls of
  // any shapes may share it, one after the other.
  void* counters = nullptr;
  float* scores = nullptr;  // [M, N] or null: also store the very scores selected by (for tests)
  // [M, 2] or null (for benches): to these are added how many keys a query's lists took, and how often
  // one overflowed: was cut as it was full, or emptied as the sample had misled.
  std::int32_t* list_counts = nullptr;
};

// How many candidates of a query a block may hold, and of how many keys all are candidates. In how
// many pieces a range is cut at most, and how many keys their sample has.
constexpr std::int32_t kCandidateCapacity = 8192, kShortRange = 5120, kMostPieces = 256,
                       kMostShared = 2048;

// How a call is cut: groups of neighbouring queries and, where these are fewer than the device has
// multiprocessors, the key range of each in pieces. Persistent blocks take the items in turn. The
// workspace holds the lists of candidates
//   blocks x columns_per_group x kCandidateCapacity x 8 bytes
// and with pieces, for what they share, M x (kMostShared + pieces x 2) x 8 bytes. By the counters the pieces
// find out what others have done and which is the last; their size depends on the device alone.
struct IndexTopkPlan {
  std::int32_t columns_per_group = 0;  // queries that a block can score together
  std::int32_t queries_per_group = 0;  // queries that it does
  std::int32_t groups = 0;
  std::int32_t pieces = 1;
  std::int32_t blocks = 0;
  std::int64_t lists_bytes = 0, shared_bytes = 0;  // of the workspace, in this order
  std::int64_t workspace_bytes = 0;
  std::int64_t counter_bytes = 0;
};

// Checks the arguments' sizes (InputError) and cuts the call for a device of `processors`
// multiprocessors. The workspace does not depend on the number of keys, nor the plan on anything
// that only the device knows.
IndexTopkPlan plan_index_topk(const IndexTopkCudaParams& params, std::int32_t processors);

// Enqueues the op; throws DeviceError where CUDA refuses. Nothing is read back to the host.
void index_topk_cuda(const IndexTopkCudaParams& params, const IndexTopkPlan& plan,
                     CUstream_st* stream);

// For the launching code, which nvcc compiles and which therefore does without error.h: throws
// InputError if the workspace is too small or counters are missing; throws DeviceError.
void check_workspace(const IndexTopkCudaParams& params, const IndexTopkPlan& plan);
[[noreturn]] void index_topk_refused(const char* what, const char* cuda_message);

// The definition in double, for params that hold host pointers.
struct IndexScoreRef {
  double score = 0;
  double magnitude = 0;  // the same sum of absolute values, which error bounds are in proportion to
};
IndexScoreRef index_score_ref(const IndexTopkCudaParams& params, std::int64_t query,
                              std::int64_t key);

}  // namespace indexcache
