// Seeds: keys that a query's best are likely among. The queries of a group score the keys that any of
// their seeds names, instead of a sample; the k-th best of them is a threshold that k keys reach for
// certain.
#pragma once

#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

// The scorers: the distinct keys of `keys` that seeds of the group's queries name within their ranges,
// ascending, to `listed`. No walk where there are more of them than `most`, or where their bits, one a
// key of the range, do not fit in `words` words of shared memory.
template <class L>
__device__ KeyWalk list_seeds(const IndexTopkCudaParams& p, const Item& item,
                              const GroupState& state, const KeyWalk& keys, int most, int* listed,
                              std::uint32_t* bits, int words, SelectScratch& scratch) {
  const Team<kScorers> all{static_cast<int>(threadIdx.x), kScorersBarrier};
  const int used = (keys.count + 31) / 32;
  if (used > words) return {};
  for (int i = all.rank; i < used; i += all.size) bits[i] = 0;
  all.sync();
  const QueryTeam<L> team;
  if (team.query < item.queries) {
    const int start = state.start[team.query], range = state.end[team.query] - start;
    const std::int32_t* seeds = p.seeds + (item.first_query + team.query) * p.seed_stride;
    for (int i = team.rank; i < p.num_seeds; i += team.size) {
      const int seed = seeds[i], bit = start - keys.first + seed;
      if (seed >= 0 && seed < range) atomicOr(&bits[bit / 32], 1u << bit % 32);
    }
  }
  all.sync();
  const int chunk = (used + all.size - 1) / all.size | 1;  // odd: lanes meet no bank twice
  const int from = min(all.rank * chunk, used), to = min(from + chunk, used);
  unsigned own = 0;
  for (int i = from; i < to; ++i) own += __popc(bits[i]);
  const TeamSum sum = sum_before(all, own, false, scratch);
  int place = static_cast<int>(sum.before);
  const unsigned count = sum.all;
  all.sync();
  if (count == 0 || count > static_cast<unsigned>(most)) return {};
  for (int i = from; i < to; ++i) {
    for (std::uint32_t rest = bits[i]; rest != 0; rest &= rest - 1) {
      listed[place++] = keys.first + 32 * i + __ffs(static_cast<int>(rest)) - 1;
    }
  }
  KeyWalk walk;
  walk.count = static_cast<int>(count);
  walk.listed = listed;
  return walk;
}

}  // namespace indexcache::index_topk_device
