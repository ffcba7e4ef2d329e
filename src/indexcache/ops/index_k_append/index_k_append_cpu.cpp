#include <algorithm>
#include <cstring>

#include "indexcache/ops/index_k_append/index_k_append_params.h"

namespace indexcache {
namespace {

void append(const IndexKAppendParams& p, std::int64_t token) {
  const std::int64_t slot = p.slots[token];
  if (slot < 0 || slot >= p.num_pages * kIndexPageKeys) return;
  float values[kIndexDim];
  read_index_row(p.keys, p.dtype, token, values);
  rotate_index_row(values, p.rope.of(token), p.type);
  auto* page = static_cast<std::uint8_t*>(p.pages) + slot / kIndexPageKeys * p.page_stride;
  const std::int64_t row = slot % kIndexPageKeys;
  const float scale =
      store_e4m3_block(values, kIndexDim, p.type.scale, p.amax_floor, page + index_key_offset(row));
  std::memcpy(page + index_scale_offset(row), &scale, sizeof scale);
}

}  // namespace

void index_k_append_cpu(const IndexKAppendParams& p, const Parallel& parallel) {
  parallel.run([&](int worker) {
    const std::int64_t share = (p.num_tokens + parallel.num_workers - 1) / parallel.num_workers;
    const std::int64_t end = std::min(p.num_tokens, (worker + 1) * share);
    for (std::int64_t t = worker * share; t < end; ++t) append(p, t);
  });
}

}  // namespace indexcache
