// e4m3 latents as bf16 rows, once for all queries that read them. Torch-free.
//
//   rows[r, id, :] = the 576 values of key id of request r, as read_latent has them
//
// The Hopper kernel converts e4m3 latents wherever it gathers them. In a prefill a key is gathered
// many times, and it is faster to convert it once and gather bf16: sparse_mla over `expanded_store`
// gives the bits that it gives over the e4m3 store.
#pragma once

#include "indexcache/ops/sparse_mla/latent_store.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

namespace indexcache {

constexpr std::int64_t kMostExpandedRequests = 65535;  // a launch's height

struct LatentExpansion {
  LatentStore from;               // e4m3
  std::int64_t num_requests = 1;  // rows of its block table, at most kMostExpandedRequests
  std::int64_t num_pages = 1;     // at its data: a table's entries beyond hold no keys either

  // Room of the caller's, on the device of from.data: expanded_keys() rows of 1152 bytes, and, where
  // `from` has a block table, [num_requests, pages a request] words.
  void* rows = nullptr;
  std::int32_t* table = nullptr;
};

// Pages that the keys of a request fill, and keys for which `rows` needs room.
std::int64_t pages_of_request(const LatentStore& store);
std::int64_t expanded_keys(const LatentStore& store, std::int64_t num_requests);

// What the rows are to sparse_mla.
LatentStore expanded_store(const LatentExpansion& expansion);

// Whether the keys that a launch gathers are so many times those that an expansion converts that it
// is faster: converting a key takes as long as 4 gathers lose (docs/kernels/sparse_mla.md); and its
// rows no more than 604 MB.
constexpr std::int64_t kMostExpandedKeys = 1 << 19;
bool worth_expanding(const SparseMlaWgmmaParams& params, std::int64_t num_requests);

// All pointers the device's. Reads nothing back: it can be captured in a graph. What holds no key is
// left as it is in `rows`.
void expand_latents_cuda(const LatentExpansion& expansion, CUstream_st* stream);

}  // namespace indexcache
