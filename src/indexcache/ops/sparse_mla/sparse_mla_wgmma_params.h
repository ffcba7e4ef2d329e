// sparse_mla on Hopper's tensor cores: latents of 512 + 64 values, q and out in bf16. Torch-free;
// formula in sparse_mla.h, the kernel's design in docs/kernels/sparse_mla.md.
//
// Queries come in groups of consecutive rows of q, each group with one list of entries:
//   kIndices   a group is one query, entries are key ids in any order; ids outside [0, num_keys)
//              anywhere (-1 above all) are skipped, duplicates count as often as they occur
//   kUnion     a group is up to kGroupQueries queries, entries are index_union's
// An empty row gives out 0 and lse -inf. A latent that a query did not select, NaN and inf
// included, never changes its bits: not in a neighbour's entries, not in unused slots. The order of
// accumulation is that of the group's own entries, and a cluster splits them as a function of their
// number: nothing depends on the other groups of the launch.
#pragma once

#include <cstdint>
#include <optional>

#include "indexcache/kernels/union_entry.h"
#include "indexcache/ops/sparse_mla/latent_store.h"
#include "indexcache/ops/sparse_mla/sparse_mla_params.h"

namespace indexcache {

enum class EntryKind { kIndices, kUnion };

// Who works on one group's entries: one CTA, or, where groups are few (decode), a cluster of
// kClusterCtas which share them.
enum class EntrySplit { kWhole, kCluster };
constexpr int kClusterCtas = 4;

struct SparseMlaWgmmaParams {
  std::int64_t num_queries = 0;  // M
  std::int64_t num_heads = 0;    // h, 1 to 128
  float softmax_scale = 1.0f;    // above 0
  EntryKind kind = EntryKind::kIndices;
  EntrySplit split = EntrySplit::kWhole;
  LatentStore kv;

  std::int64_t num_groups = 0;                // kIndices: M
  const std::int32_t* group_begin = nullptr;  // kUnion: [num_groups + 1] rows of q
  const std::int32_t* request = nullptr;      // [num_groups] row of kv's block table; null: 0
  const std::int32_t* entries = nullptr;      // [num_groups, entry_stride]
  std::int64_t entry_stride = 0;              // entries a group has room for
  const std::int32_t* counts =
      nullptr;  // [num_groups] how many of them to read; kIndices: null for all

  const void* q = nullptr;  // [M, h, 576] bf16, a multiple of 16
  void* out = nullptr;      // [M, h, 512] bf16, a multiple of 16
  float* lse = nullptr;     // [M, h]

  // kWhole: sparse_mla_wgmma_workspace() bytes, a multiple of 16, for one launch at a time, with
  // anything in them; or null. Changes the time alone: pieces of work that would be a round for a few
  // CTAs are cut, and sums handed on from CTA to CTA in it.
  void* workspace = nullptr;
};

// Throws InputError where the kernel could not run as the comments above say.
void check_sparse_mla_wgmma(const SparseMlaWgmmaParams& params);

// How many CTAs a launch has: row tiles of 64 (query, head) pairs for each group, times the
// cluster's size.
inline std::int64_t sparse_mla_wgmma_ctas(const SparseMlaWgmmaParams& p) {
  const std::int64_t rows = p.num_heads * (p.kind == EntryKind::kUnion ? kGroupQueries : 1);
  return p.num_groups * ((rows + 63) / 64) * (p.split == EntrySplit::kCluster ? kClusterCtas : 1);
}

// How much workspace a launch on the current device has a use for: 139264 bytes and two flags a
// multiprocessor, or 0.
std::int64_t sparse_mla_wgmma_workspace(const SparseMlaWgmmaParams& params);

// Checked params in, all pointers the device's. Allocates nothing and reads nothing back: it can be
// captured in a graph.
void sparse_mla_wgmma_cuda(const SparseMlaWgmmaParams& params, CUstream_st* stream);

// The plain op's arguments for this kernel, a query a group; none where it does not take them.
std::optional<SparseMlaWgmmaParams> wgmma_params(const SparseMlaParams& params);

}  // namespace indexcache
