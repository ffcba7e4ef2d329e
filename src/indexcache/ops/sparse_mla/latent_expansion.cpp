#include "indexcache/ops/sparse_mla/latent_expansion.h"

#include <algorithm>

namespace indexcache {
namespace {

// Of a page; all where there is one page.
std::int64_t page_keys(const LatentStore& store) {
  return std::min(store.num_keys, std::int64_t{1} << store.page_shift);
}

}  // namespace

std::int64_t pages_of_request(const LatentStore& store) {
  const std::int64_t keys = std::int64_t{1} << store.page_shift;
  return (store.num_keys + keys - 1) / keys;
}

std::int64_t expanded_keys(const LatentStore& store, std::int64_t num_requests) {
  return (store.block_table ? num_requests : 1) * pages_of_request(store) * page_keys(store);
}

LatentStore expanded_store(const LatentExpansion& e) {
  constexpr std::int64_t kRow = latent_row_bytes(LatentFormat::kBFloat16);
  LatentStore store = e.from;
  store.format = LatentFormat::kBFloat16;
  store.data = e.rows;
  store.row_stride = kRow;
  store.page_stride = kRow * page_keys(e.from);
  if (e.from.block_table) {
    store.block_table = e.table;
    store.table_stride = pages_of_request(e.from);
  }
  return store;
}

bool worth_expanding(const SparseMlaWgmmaParams& p, std::int64_t num_requests) {
  if (p.kv.format != LatentFormat::kE4M3 || num_requests > kMostExpandedRequests) return false;
  // A union has at least a third of the entries that there is room for, unless keys are few.
  const std::int64_t entries =
      p.num_groups * p.entry_stride / (p.kind == EntryKind::kUnion ? kGroupQueries : 1);
  const std::int64_t keys = expanded_keys(p.kv, num_requests);
  return keys <= kMostExpandedKeys && keys <= entries / 4;
}

}  // namespace indexcache
