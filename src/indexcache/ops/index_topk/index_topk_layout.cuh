// How index_topk's Hopper kernel lays a group of queries out over the columns of matrix products,
// which keys it walks, and what a block keeps in shared memory.
#pragma once

#include <cstddef>

#include "indexcache/kernels/held_keys.cuh"
#include "indexcache/kernels/mbarrier.cuh"
#include "indexcache/kernels/ordered_row.cuh"
#include "indexcache/kernels/wgmma_shared.cuh"
#include "indexcache/ops/index_topk/index_topk_cuda_params.h"

namespace indexcache::index_topk_device {

using namespace device;

// Four warpgroups compute, a fifth fetches keys.
constexpr int kWarpgroup = 128, kScoringGroups = 4;
constexpr int kScorers = kScoringGroups * kWarpgroup, kWarps = kScorers / 32, kLogScorers = 9;
static_assert(kScorers == 1 << kLogScorers);
constexpr int kFetchers = kWarpgroup, kFetchWarps = kFetchers / 32;
constexpr int kThreads = kScorers + kFetchers;
// A launch has 5 x 96 registers for five threads: 4 x 112 + 32.
constexpr int kScorerRegisters = 112, kFetcherRegisters = 32;
constexpr int kSharedMemory = 227 * 1024;  // that a block may have
// Numbered barriers: 0 is the scorers' own; of all threads, that a piece's walk begins; of the teams,
// eight at most; of the fetchers; of each of the four scoring warpgroups.
constexpr int kScorersBarrier = 0, kScanBarrier = 1, kTeamBarrier = 2, kFetchersBarrier = 10,
              kWarpgroupBarrier = 11;

constexpr int kBlockRows = 64;  // of a matrix product
constexpr int kMostSampled = 5119;
constexpr int kPageKeys = 64, kPageScales = kPageKeys * 128;

__device__ __forceinline__ int warpgroup() { return threadIdx.x / kWarpgroup; }

struct E4m3 {
  static constexpr int kRowBytes = 128;
  static constexpr bool kHasInfinity = false, kHasScale = true;
  template <int n>
  static __device__ __forceinline__ void multiply(float (&d)[n], std::uint64_t a, std::uint64_t b,
                                                  bool accumulate) {
    wgmma_e4m3(d, a, b, accumulate);
  }
};

struct Bf16 {
  static constexpr int kRowBytes = 256;
  static constexpr bool kHasInfinity = true, kHasScale = false;
  template <int n>
  static __device__ __forceinline__ void multiply(float (&d)[n], std::uint64_t a, std::uint64_t b,
                                                  bool accumulate) {
    wgmma_bf16(d, a, b, accumulate);
  }
};

// Which keys a scan visits: `count` from `first` on; or scattered ones, whose scores are all kept to take
// thresholds from: a sample of a range, one key from each of `count` equal strata at a place drawn by a
// hash, or listed ones.
struct KeyWalk {
  int first = 0, count = 0;
  unsigned stratum = 0;         // 0: no sample
  unsigned long long step = 0;  // 32.32 fixed point
  const int* listed = nullptr;
  __device__ __forceinline__ bool scattered() const { return stratum != 0 || listed != nullptr; }
  __device__ __forceinline__ int scattered_key(int i) const {
    if (listed != nullptr) return listed[i];
    unsigned hash = static_cast<unsigned>(i) * 0x9E3779B1u;
    hash = (hash ^ hash >> 15) * 0x85EBCA77u;
    hash ^= hash >> 13;
    return first + static_cast<int>(i * step >> 32) + static_cast<int>(__umulhi(hash, stratum));
  }
};

// One key of `share`.
__device__ __forceinline__ KeyWalk sampled_keys(KeyWalk keys, int share) {
  const int range = keys.count, count = min(range / share, kMostSampled);
  return {keys.first, count, static_cast<unsigned>(range / count),
          (static_cast<unsigned long long>(range) << 32) / static_cast<unsigned>(count)};
}

// What an item is: a group of queries and, where the plan has pieces, one of them.
struct Item {
  int group, piece;
  int first_query, queries;
};
// Item i of a plan. Later queries usually have more keys: the longest first.
__device__ __forceinline__ Item item_at(const IndexTopkCudaParams& p, const IndexTopkPlan& plan,
                                        int i) {
  const int group = plan.groups - 1 - i / plan.pieces, first = group * plan.queries_per_group;
  return {group, i % plan.pieces, first, min(plan.queries_per_group, p.num_queries - first)};
}

// The queries of a piece's group, of which none is without queries: no loop where there is room for one.
template <class L>
__device__ __forceinline__ int queries_of_piece(const Item& item) {
  return L::kGroupQueries == 1 ? 1 : item.queries;
}

struct KeyRange {
  int start, end;
};
__device__ __forceinline__ KeyRange range_of(const IndexTopkCudaParams& p, int query) {
  return {p.start != nullptr ? max(0, p.start[query]) : 0, min(p.num_keys, p.end[query])};
}

// A warp: the keys that hold the ranges of all queries of a group. From the start of a page on, where
// there are pages: a warp's 16 keys are then of one page. Else from a multiple of 4 on: a box of scales
// begins at a multiple of 16 bytes, or the copy is illegal.
template <class L>
__device__ __forceinline__ KeyWalk keys_of_group(const IndexTopkCudaParams& p, const Item& item) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int first = 0x7FFFFFFF, last = 0;
  if (lane < item.queries) {
    const KeyRange range = range_of(p, item.first_query + lane);
    if (range.end > range.start) {
      first = range.start;
      last = range.end;
    }
  }
  first = __reduce_min_sync(0xFFFFFFFFu, first);
  last = __reduce_max_sync(0xFFFFFFFFu, last);
  constexpr int kBoundary = L::kPaged ? kPageKeys : 4;
  first = first / kBoundary * kBoundary;
  return last > first ? KeyWalk{first, last - first} : KeyWalk{};
}

// A group of kGroupQueries queries. The scoring warpgroups share a tile: by queries in kParts, by
// keys in 4 / kParts blocks of 64. A warpgroup's products of its 64 keys with its kQueries queries'
// (8, 4, 2 or 1) heads in kColumns columns are one accumulation of kColumns / 2 registers a thread. Of
// eight columns, those of thread c of a quad, 2 c and 2 c + 1, are
//   8 queries  two queries, one head      4 queries  one query, two heads
//   2 queries  one query, two of four heads; a sum over heads is of two threads
//   1 query    two of eight heads; of four threads
template <class KeyFormat, int parts, int queries, int columns, int stages, int staged, bool paged>
struct Layout {
  using Format = KeyFormat;
  static constexpr int kParts = parts, kQueries = queries, kColumns = columns;
  static constexpr int kGroupQueries = kParts * kQueries;
  static constexpr int kStages = stages;
  static constexpr bool kPaged = paged, kInPieces = false;
  static constexpr int kBlocks = kScoringGroups / kParts;  // of a tile
  static constexpr int kTileKeys = kBlocks * kBlockRows;
  // Barriers of a stage: one, as a tile's blocks come together.
  static constexpr int kStreams = 1, kFetchArrivals = kFetchWarps, kScoreArrivals = kWarps;
  static constexpr int kOwn = kQueries == 8 ? 2 : 1;         // queries of a thread
  static constexpr int kRows = kQueries < 4 ? 1 : 2;         // of the keys, whose scores it joins
  static constexpr int kSums = kQueries < 4 ? kQueries : 4;  // of the four sums, a thread's
  static constexpr int kBankBytes = kColumns * 128;          // for 128 bytes of K
  // A thread's weights, and how many of them stand in its registers: there is no room for 32.
  static constexpr int kWeights = kColumns / 4, kHeld = kWeights < 20 ? kWeights : 20;
  static constexpr int kRow = Format::kRowBytes, kSteps = kRow / 32, kHalves = kRow / 128;
  static constexpr int kPartBytes = kHalves * kBankBytes, kQueryBytes = kParts * kPartBytes;
  static constexpr int kBlockBytes = kHalves * kBlockRows * 128;  // 64 keys
  static constexpr int kKeyBytes = kTileKeys * kRow;              // of a stage
  static constexpr int kMostStaged = kRows * kOwn;                // by a lane, of a tile
  static constexpr int kStaged = staged;                          // by a lane at most, and one more
  // Who fetches a tile looks at the lists, when the tile a ring before it may not have been staged yet;
  // a list that is let pass is cut three tiles later at the latest. A lane that has yet to stage that
  // tile's scores has room for them.
  static constexpr int kLanesPerQuery = kScorers / (kQueries == 1 ? 2 : kGroupQueries) * kOwn;
  static constexpr int kMostUncounted =
      kLanesPerQuery * (kStaged - 1 - kMostStaged) + (kStages + 3) * kTileKeys;
  static constexpr int kLimit = kCandidateCapacity - kMostUncounted;
  // One key of so many is sampled: of 64, some 1.9 k keys reach a query's threshold, with a deviation of an
  // eighth of that; of 40, 1.7 k with a tenth, for lists that have to be cut sooner.
  static constexpr int kSampleShare = kLimit > 5120 ? 64 : 40;
  static_assert(kLimit >= 2 * kMostOrdered);

  // This thread's part of the queries and block of the keys.
  static __device__ __forceinline__ int part() { return warpgroup() % kParts; }
  static __device__ __forceinline__ int block() { return warpgroup() / kParts; }

  // Column 2 c + e of eight columns j belongs to this query of the part, and head.
  static __device__ __forceinline__ int column_query(int c, int e) {
    return kQueries == 8 ? 2 * c + e : kQueries == 4 ? c : kQueries == 2 ? c % 2 : 0;
  }
  static __device__ __forceinline__ int column_head(int j, int c, int e) {
    const int within = kQueries == 8   ? 0
                       : kQueries == 4 ? e
                       : kQueries == 2 ? c / 2 * 2 + e
                                       : 2 * c + e;
    return j * (8 / kQueries) + within;
  }
  // Which of the thread's sums the heads of eight columns j go to: sum (head / 2) % 4 of the four.
  static __device__ __forceinline__ int sum_of(int j) {
    return kQueries == 8 ? j / 2 % 4 : j % kSums;
  }
};

// The same for a plan with pieces. A kernel of its own: with both in one there are registers for neither. Each
// block of 64 keys of a tile is a stream of its own, from a warp that fetches it to the warpgroups that score
// it, and ends when it ends.
template <class L>
struct InPieces : L {
  static constexpr bool kInPieces = true;
  static constexpr int kStreams = L::kBlocks, kFetchArrivals = 1,
                       kScoreArrivals = kWarps / L::kBlocks;
};

// What the block knows of its queries.
struct GroupState {
  RankedKey threshold[8];
  int count[8];  // candidates in the list
  int start[8], end[8];
  int sample_rank[8];  // of pieces: of the threshold in the group's sample; 0: no threshold
  bool settled[8];     // the list holds all that it needs, or the result is written
  bool written[8];
};

// A score on its way to a list: which of the thread's queries it is of, in the highest bit, and its key's
// place in the walk.
struct StagedScore {
  float score;
  std::uint32_t own_and_place;
};

// Of a run of 64 keys beside the first one's place in the walk: the stream ends with it; it is of the sample.
constexpr std::uint32_t kLastRun = 1u << 31, kSampleRun = 1u << 30;

// The block's shared memory. The first two are operands of products.
template <class L>
struct GroupShared {
  alignas(1024) std::uint8_t queries[L::kQueryBytes];
  std::uint8_t keys[L::kStages][L::kKeyBytes];  // blocks of 64; of each, 128 bytes of K after 128
  // Of a lane every 32nd; aligned so that an address tells how many.
  alignas(L::kStaged * 32 * sizeof(StagedScore)) StagedScore staged[kWarps][L::kStaged][32];
  alignas(128) float scales[L::kStages][L::kTileKeys];
  // What thread c of a quad has; the rows of four meet no bank twice.
  alignas(16) float weights[L::kParts][4][L::kWeights + 4];
  std::uint64_t full[L::kStages][L::kStreams], empty[L::kStages][L::kStreams];
  std::uint64_t walk_given, walk_fetched;  // to the fetchers and by them
  int walk_parity;                         // of walk_fetched, once the last walk has been
  KeyWalk walk;                            // what the fetchers are to fetch; count < 0: no more
  int request;                             // whose keys they are
  KeyWalk range;                           // all keys of the group
  std::uint32_t cut[L::kStages];           // all bits, if lists are to be cut after the next tile
  std::uint64_t sample_there[L::kStreams];
  std::uint32_t run[L::kStages][L::kStreams];  // of pieces: a stream's keys, see kLastRun
  unsigned calls, tag;                         // of the group before this one; of this one's sample
  bool is_last;                                // piece of the group
  bool again;                                  // a piece has to walk all keys of the group
  Item item;
  GroupState state;
  AsideWords aside;
  // What the team of a query selects with, or all scorers of a piece.
  union {
    SelectScratch select[L::kGroupQueries];
    HeldScratch held_select;
  };

  static constexpr int kSelectionBytes = sizeof queries + sizeof keys + sizeof staged;
  static_assert(kSelectionBytes % (16 * L::kGroupQueries) == 0);
};

// One thread of the scorers, of whom none reads the last walk any more: a walk for the fetchers, once all
// of them are through with that one, which they read where it stands: they have no registers for it.
template <class L>
__device__ __forceinline__ void hand_over(GroupShared<L>& shared, const KeyWalk& walk,
                                          int request) {
  mbarrier_wait(&shared.walk_fetched, shared.walk_parity);
  shared.walk_parity ^= 1;
  shared.walk = walk;
  shared.request = request;
  mbarrier_arrive(&shared.walk_given);
}

// Whether a query's list is to be cut.
template <class L>
__device__ __forceinline__ bool is_full(const GroupShared<L>& shared, int query) {
  const int count = *static_cast<const volatile int*>(&shared.state.count[query]);
  return count > L::kLimit && !shared.state.settled[query];
}

// Shared memory that a selection may use, in words.
struct Room {
  std::uint32_t* words;
  int count;
};

// The scorers share out the queries of a group among them: a team has the list of one.
template <class L>
struct QueryTeam : Team<kScorers / L::kGroupQueries> {
  using Base = Team<kScorers / L::kGroupQueries>;
  int query = static_cast<int>(threadIdx.x) / Base::size;
  __device__ __forceinline__ QueryTeam()
      : Base{static_cast<int>(threadIdx.x) % Base::size,
             kTeamBarrier + static_cast<int>(threadIdx.x) / Base::size} {}
  // This team's share of memory that is free at the time.
  static __device__ __forceinline__ Room share(void* from, int bytes) {
    const int words = bytes / 4 / L::kGroupQueries;
    return {static_cast<std::uint32_t*>(from) + static_cast<int>(threadIdx.x) / Base::size * words,
            words};
  }
};

// Or all scorers have one list, which then fits their registers.
using BlockTeam = Team<kScorers>;
using HeldList = HeldKeys<BlockTeam, kCandidateCapacity / kScorers>;
__device__ __forceinline__ BlockTeam block_team() {
  int rank;
  asm volatile("mov.u32 %0, %%tid.x;"
               : "=r"(rank));  // what follows from it is not kept for a next query
  return {rank, kScorersBarrier};
}

// A place in the ring of stages, and the parity of its present round.
template <int stages>
struct RingPlace {
  int stage = 0, parity = 0;
  __device__ __forceinline__ RingPlace next() const {
    return stage + 1 == stages ? RingPlace{0, parity ^ 1} : RingPlace{stage + 1, parity};
  }
  __device__ __forceinline__ RingPlace after(int tiles) const {
    const int at = stage + tiles;
    return {at % stages, parity ^ (at / stages & 1)};
  }
};

}  // namespace indexcache::index_topk_device
