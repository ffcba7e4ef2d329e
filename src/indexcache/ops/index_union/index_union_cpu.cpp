#include <algorithm>
#include <atomic>
#include <limits>

#include "indexcache/ops/index_union/index_union_params.h"

namespace indexcache {
namespace {

constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();  // above every id

void merge_group(const IndexUnionParams& p, std::int64_t group) {
  const std::int32_t *next[kGroupQueries] = {}, *end[kGroupQueries] = {};
  const int size = p.group_begin[group + 1] - p.group_begin[group];
  for (int j = 0; j < size; ++j) {
    next[j] = p.indices + (p.group_begin[group] + j) * p.top_k;
    end[j] = next[j] + p.top_k;
  }
  const auto head = [&](int j) { return next[j] == end[j] || *next[j] < 0 ? kNone : *next[j]; };
  std::int32_t* const begin = p.entries + group * p.entry_stride;
  std::int32_t* out = begin;
  while (true) {
    std::int32_t id = kNone;
    for (int j = 0; j < size; ++j) id = std::min(id, head(j));
    if (id == kNone) break;
    std::uint32_t mask = 0;
    for (int j = 0; j < size; ++j) {
      if (head(j) != id) continue;
      mask |= 1u << j;
      ++next[j];
    }
    *out++ = static_cast<std::int32_t>(static_cast<std::uint32_t>(id) | mask << kUnionIdBits);
  }
  p.counts[group] = static_cast<std::int32_t>(out - begin);
}

}  // namespace

void index_union_cpu(const IndexUnionParams& p, const Parallel& parallel) {
  std::atomic<std::int64_t> next = 0;
  parallel.run([&](int) {
    for (std::int64_t g = next++; g < p.num_groups; g = next++) merge_group(p, g);
  });
}

}  // namespace indexcache
