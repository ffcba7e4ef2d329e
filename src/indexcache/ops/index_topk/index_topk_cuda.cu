// index_topk on Hopper: scores on the tensor cores, candidates kept as they come, selection exact.
//
// A block owns a group of 8 (or 4) neighbouring queries and walks the keys of their ranges in tiles.
// Four warpgroups score, 64 keys of a tile each with all or half of the queries; a fifth fetches tiles into a ring in shared
// memory. Keys are the rows of the matrix product, (head, query) pairs its columns, laid out so that
// a thread holds all heads of its own queries: relu, weights and the sum over heads stay in the
// thread's registers, with nothing exchanged between lanes.
//
// Selection. A sample of the keys, one of 64, is scored first; from it each query takes a threshold
// that about 2 k of its keys will reach. The scan then appends the keys that reach it to a list,
// which is thus in the order of the keys but for places between two looks at its length. If fewer
// than k did, the group is scanned again without threshold; where a list fills up, it is cut to its
// best k, whose least becomes the threshold. So the result is exact whatever the keys are; the
// sample decides the time only. At last a warp a query selects the best k of the list, and puts
// their indices in ascending order by way of a bit for each key of a stretch.
//
// Few groups (decode): the range of each is cut in pieces, a block each. A block scans its piece and
// publishes its share of the best k and some more; the block that comes last selects from what all
// published, and from the lists of pieces that turn out to have more. No block waits for another.
//
// A score's rounding is a function of the number of heads alone: four sums, of the heads h with
// (h / 2) % 4 = 0 .. 3, each ascending in fused multiply-adds; then (s0 + s1) + (s2 + s3), times
// the key's scale.
#include <cuda_runtime.h>

#include "indexcache/kernels/register_share.cuh"
#include "indexcache/ops/index_topk/index_topk_candidates.cuh"
#include "indexcache/ops/index_topk/index_topk_keys.cuh"
#include "indexcache/ops/index_topk/index_topk_seeds.cuh"

namespace indexcache {
namespace {

using namespace index_topk_device;

// What a piece kept to itself: its list's size, and the least key it published where it has more.
struct PieceRest {
  RankedKey bound;  // kEveryKey: published all
  int size;
};

// Where the pieces of a query meet: [M][pieces * k] keys, [M][pieces] rests, and how many pieces of a
// group are in.
struct MergeLists {
  RankedKey* keys;
  PieceRest* rests;
  unsigned* arrived;
};

// The scorers' work on one item.
template <class L>
struct GroupSelection {
  static constexpr int kQueries = L::kGroupQueries;

  // Nothing of a group stands in registers: the scan has none to spare.
  const IndexTopkCudaParams& p;
  const IndexTopkPlan& plan;
  GroupShared<L>& shared;
  RingPlace<L::kStages>& place;
  GroupState& state = shared.state;
  const Item& item = shared.item;
  GroupCandidates<L> candidates{p, shared, place};

  __device__ __forceinline__ MergeLists merge() const {
    auto* workspace = static_cast<std::uint8_t*>(p.workspace);
    auto* merged = reinterpret_cast<RankedKey*>(workspace + plan.lists_bytes);
    return {
        merged,
        reinterpret_cast<PieceRest*>(merged + std::int64_t{p.num_queries} * plan.pieces * p.top_k),
        reinterpret_cast<unsigned*>(workspace + plan.lists_bytes + plan.merge_bytes)};
  }

  static __device__ __forceinline__ void sync() { barrier_sync(kScorersBarrier, kScorers); }
  static __device__ __forceinline__ bool any(bool value) {
    return barrier_any(kScorersBarrier, kScorers, value);
  }

  // Between scans and after them the keys and what is staged make room, at last the queries too.
  __device__ __forceinline__ Room room_beside_queries() const {
    return QueryTeam<L>::share(shared.keys, sizeof shared.keys + sizeof shared.staged);
  }
  __device__ __forceinline__ Room room() const {
    static_assert(GroupShared<L>::kSelectionBytes / 4 / kQueries >=
                  kOrderWords<Team<kScorers / kQueries>>);
    return QueryTeam<L>::share(shared.queries, GroupShared<L>::kSelectionBytes);
  }

  // A team: writes its query's row, the best of the list.
  __device__ __forceinline__ void write_row(const QueryTeam<L>& team, const RankedKey* list,
                                            int size) const {
    const int wanted = min(p.top_k, candidates.range(team.query));
    const Room free = room();
    const RankedKey threshold = select_threshold(team, list, size, wanted, free.words, free.count,
                                                 shared.select[team.query]);
    write_reaching(team, list, size, threshold);
  }
  __device__ __forceinline__ void write_reaching(const QueryTeam<L>& team, const RankedKey* list,
                                                 int size, RankedKey threshold) const {
    std::int32_t* out = p.out + std::int64_t{item.first_query + team.query} * p.top_k;
    const int taken =
        write_ascending(team, list, size, threshold, state.start[team.query],
                        candidates.range(team.query), out, room().words, shared.select[team.query]);
    for (int i = taken + team.rank; i < p.top_k; i += team.size) out[i] = -1;
  }

  // The scorers: writes the rows of all queries that are not written.
  __device__ __forceinline__ void finish() const {
    const QueryTeam<L> team;
    if (team.query < item.queries && !state.written[team.query]) {
      write_row(team, candidates.lists() + team.query * kCandidateCapacity,
                state.count[team.query]);
    }
  }

  // Reads the ranges; the keys that hold them all.
  __device__ __forceinline__ KeyWalk open_group() const {
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x, query = item.first_query + i;
      const bool real = i < item.queries;
      state.start[i] = real && p.start != nullptr ? max(0, p.start[query]) : 0;
      state.end[i] = real ? min(p.num_keys, p.end[query]) : 0;
      state.threshold[i] = kEveryKey;
      state.count[i] = 0;
      state.settled[i] = false;
      state.written[i] = false;
    }
    sync();
    int first = 0x7FFFFFFF, last = 0;
    for (int i = 0; i < kQueries; ++i) {
      if (candidates.range(i) == 0) continue;
      first = min(first, state.start[i]);
      last = max(last, state.end[i]);
    }
    // From the start of a page on, where there are pages: a warp's 16 keys are then of one page.
    if (L::kPaged) first = first / kPageKeys * kPageKeys;
    return last > first ? KeyWalk{first, last - first} : KeyWalk{};
  }

  // This item's piece of the keys: every pieces-th block of 64, so that no piece has all of a stretch
  // with high scores.
  __device__ __forceinline__ KeyWalk piece_of(KeyWalk keys) const {
    const int blocks = (keys.count + kBlockRows - 1) / kBlockRows;
    const int own = (blocks - item.piece + plan.pieces - 1) / plan.pieces;
    const bool has_last = own > 0 && item.piece + (own - 1) * plan.pieces == blocks - 1;
    const int count = own * kBlockRows - (has_last ? blocks * kBlockRows - keys.count : 0);
    return {keys.first + item.piece * kBlockRows, max(count, 0), (plan.pieces - 1) * kBlockRows};
  }

  // Whether a query's list holds its best keys; if not, it is emptied and takes every key next.
  __device__ __forceinline__ bool settle() const {
    bool again = false;
    if (threadIdx.x < kQueries) {
      const int i = threadIdx.x;
      state.settled[i] = state.settled[i] || state.count[i] >= min(p.top_k, candidates.range(i));
      again = !state.settled[i];
      state.threshold[i] = again ? kEveryKey : kNoKey;
      if (again) state.count[i] = 0;
    }
    return !any(again);
  }

  // How many of its best keys a piece publishes at first: the number among a query's best k is about
  // mean, with deviation sqrt(mean) at most.
  __device__ __forceinline__ int quota() const {
    const float mean = static_cast<float>(p.top_k) / plan.pieces;
    return min(static_cast<int>(mean + 5 * sqrtf(mean)) + 2, p.top_k);
  }

  // A team: the best `quota` keys of its query's list to their places among the merged, filled up with
  // keys below all others, and what is left.
  __device__ __forceinline__ void publish(const QueryTeam<L>& team) const {
    const int query = team.query, size = state.count[query], most = quota();
    const std::int64_t row = item.first_query + query;
    const RankedKey* list = candidates.lists() + query * kCandidateCapacity;
    RankedKey* to = merge().keys + row * plan.pieces * p.top_k + item.piece * most;
    SelectScratch& scratch = shared.select[query];
    const Room free = room();
    const RankedKey threshold =
        select_threshold(team, list, size, most, free.words, free.count, scratch);
    if (team.rank == 0) scratch.slot = 0;
    team.sync();
    append_keys(team, list, size, threshold, kNoKey, to, scratch);
    for (int i = min(size, most) + team.rank; i < most; i += team.size) to[i] = kEveryKey;
    if (team.rank == 0) merge().rests[row * plan.pieces + item.piece] = {threshold, size};
  }

  // A team of a group's last block: writes its query's row from what the pieces published. A piece of
  // which all went into the result may have more: its best k then join, still in its block's list.
  __device__ __forceinline__ void write_merged(const QueryTeam<L>& team) const {
    const int query = team.query;
    const std::int64_t row = item.first_query + query;
    RankedKey* merged = merge().keys + row * plan.pieces * p.top_k;
    const PieceRest* rests = merge().rests + row * plan.pieces;
    SelectScratch& scratch = shared.select[query];
    const Room free = room();
    int size = plan.pieces * quota();
    const int wanted = min(p.top_k, candidates.range(query));
    RankedKey threshold =
        select_threshold(team, merged, size, wanted, free.words, free.count, scratch);
    bool more = false;
    for (int i = team.rank; i < plan.pieces; i += team.size) more |= rests[i].bound > threshold;
    if (barrier_any(team.barrier, team.size, more)) {
      for (int piece = 0; piece < plan.pieces; ++piece) {
        const PieceRest rest = rests[piece];
        if (rest.bound <= threshold) continue;
        // Pieces of a group are neighbouring blocks'.
        const RankedKey* own =
            candidates.lists() + ((piece - item.piece) * kQueries + query) * kCandidateCapacity;
        const RankedKey least = max(threshold, select_threshold(team, own, rest.size, p.top_k,
                                                                free.words, free.count, scratch));
        if (team.rank == 0) scratch.slot = size;
        team.sync();
        append_keys(team, own, rest.size, least, rest.bound, merged, scratch);
        size = scratch.slot;
        team.sync();
      }
      threshold = select_threshold(team, merged, size, wanted, free.words, free.count, scratch);
    }
    write_reaching(team, merged, size, threshold);
  }

  // The best keys of a piece join the merged ones; the group's last block writes the rows. No sample: a
  // list that fills up is cut to its best k, so that it always holds those of what was scanned.
  __device__ __forceinline__ void select_in_pieces(const KeyWalk& keys) const {
    candidates.begin(piece_of(keys));
    candidates.scores.stage_queries();
    candidates.scores.stage_weights();
    sync();
    candidates.scan();
    const QueryTeam<L> team;
    if (team.query < item.queries) publish(team);
    sync();
    // The barriers carry what the fences of one thread order to and from the others.
    if (threadIdx.x == 0) {
      __threadfence();
      state.last =
          atomicAdd(&merge().arrived[item.group], 1u) + 1 == static_cast<unsigned>(plan.pieces);
      __threadfence();
    }
    sync();
    if (state.last && team.query < item.queries) write_merged(team);
  }

  // The keys that seeds name, or none.
  __device__ __forceinline__ KeyWalk seeded_keys(const KeyWalk& keys) const {
    if (p.seeds == nullptr) return {};
    // Their scores fill the lists up to kMostSampled.
    static_assert((kCandidateCapacity - kMostSampled - 1) * 2 >= kMostSampled);
    auto* listed = reinterpret_cast<int*>(candidates.lists() + kMostSampled + 1);
    return list_seeds<L>(p, item, state, keys, kMostSampled, listed,
                         reinterpret_cast<std::uint32_t*>(shared.keys), sizeof shared.keys / 4,
                         shared.select[0]);
  }

  // From the keys to the rows of the result. Rounds: the seeds; where they name too few or too many,
  // the sample; the scan; where the sample misled, a scan that takes every key.
  __device__ __forceinline__ void select(const KeyWalk& keys) const {
    enum Round { kSeeds, kSample, kScan, kEvery };
    Round round = kScan;
    KeyWalk first = keys;
    if (keys.count > kShortRange) {
      first = seeded_keys(keys);
      round = first.count > 0 ? kSeeds : kSample;
      if (round == kSample) first = sampled_keys(keys);
    }
    if (threadIdx.x == 0) shared.range = keys;
    candidates.begin(first);
    candidates.scores.stage_queries();
    candidates.scores.stage_weights();
    sync();
    for (;;) {
      candidates.scan();
      const KeyWalk all = shared.range;
      const int scored = shared.walk.count;
      if (round == kSeeds) {
        const bool found = candidates.choose_thresholds(
            scored, room_beside_queries(),
            [&](int query) { return candidates.range(query) > kShortRange ? p.top_k : 0; });
        if (!found && threadIdx.x < kQueries) state.threshold[threadIdx.x] = kEveryKey;
        candidates.begin(found ? all : sampled_keys(all));
        round = found ? kScan : kSample;
      } else if (round == kSample) {
        candidates.choose_thresholds(scored, room_beside_queries(), [&](int query) {
          return candidates.rank_in_sample(query, scored, all.count);
        });
        candidates.begin(all);
        round = kScan;
      } else if (settle()) {
        break;
      } else {
        candidates.begin(all);
        round = kEvery;
      }
    }
    finish();
  }

  // A block's item: a group of queries, or a piece of its keys.
  __device__ __forceinline__ void run(const Item& next) const {
    if (threadIdx.x == 0) shared.item = next;
    sync();
    const KeyWalk keys = open_group();
    if (keys.count > 0 && plan.pieces > 1) {
      select_in_pieces(keys);
    } else if (keys.count > 0) {
      select(keys);
    } else if (item.piece == 0) {
      finish();
    }
    sync();  // the next item changes the state
  }
};

// The fetchers: the keys of one walk after the other.
template <class L>
__device__ __forceinline__ void fetch_walks(const IndexTopkCudaParams& p, const KeyMaps& maps,
                                            GroupShared<L>& shared) {
  RingPlace<L::kStages> place;
  for (;;) {
    barrier_sync(kScanBarrier, kThreads);
    const KeyWalk walk = shared.walk;
    if (walk.count < 0) return;
    const int request = p.tokens_per_request > 0 ? shared.item.group : 0;
    KeyFetcher<L>{p, maps, request, shared}.fetch(walk, place);
  }
}

// The scorers: one item after the other.
template <class L>
__device__ __forceinline__ void select_groups(const IndexTopkCudaParams& p,
                                              const IndexTopkPlan& plan, GroupShared<L>& shared) {
  RingPlace<L::kStages> place;
  for (int i = blockIdx.x; i < plan.groups * plan.pieces; i += gridDim.x) {
    // Later queries usually have more keys: the longest first.
    const int group = plan.groups - 1 - i / plan.pieces, first = group * plan.queries_per_group;
    GroupSelection<L>{p, plan, shared, place}.run(
        {group, i % plan.pieces, first, min(plan.queries_per_group, p.num_queries - first)});
  }
  if (threadIdx.x == 0) shared.walk.count = -1;
  barrier_sync(kScanBarrier, kThreads);
}

template <class L>
__global__ void __launch_bounds__(kThreads, 1)
    scan_groups(const __grid_constant__ IndexTopkCudaParams p,
                const __grid_constant__ IndexTopkPlan plan, const __grid_constant__ KeyMaps maps) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  auto& shared = *reinterpret_cast<GroupShared<L>*>(
      memory + (-shared_address(memory) & (alignof(GroupShared<L>) - 1)));
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < L::kStages; ++stage) {
      mbarrier_init(&shared.full[stage], kFetchWarps);
      mbarrier_init(&shared.empty[stage], kWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= kScorers) {
    give_registers<kFetcherRegisters>();
    fetch_walks(p, maps, shared);
  } else {
    take_registers<kScorerRegisters>();
    select_groups(p, plan, shared);
  }
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  index_topk_refused(what, cudaGetErrorString(result));
}

// The keys as tensors. Where there are pages their number is not known; none beyond the table's is
// asked for.
template <class L>
KeyMaps describe_keys(const IndexTopkCudaParams& p) {
  constexpr std::uint64_t kManyPages = std::uint64_t{1} << 31;
  KeyMaps maps{};
  if (p.num_keys == 0) return maps;
  const auto keys = static_cast<std::uint64_t>(p.num_keys);
  const auto stride = static_cast<std::uint64_t>(L::kPaged ? L::kRow : p.key_stride);
  const std::uint64_t plane = L::kPaged ? p.page_stride : keys * stride;
  const std::uint64_t rows = L::kPaged ? kPageKeys : keys, planes = L::kPaged ? kManyPages : 1;
  check(describe_tensor({p.keys, L::kRow, rows, planes, stride, plane, 128, kBlockRows},
                        TensorElement::kByte, true, maps.rows),
        "keys as a tensor");
  if (!L::Format::kHasScale) return maps;
  const void* scales = L::kPaged ? static_cast<const std::uint8_t*>(p.keys) + kPageScales
                                 : static_cast<const void*>(p.key_scale);
  const std::uint64_t bytes = (rows * 4 + 15) / 16 * 16;
  check(describe_tensor({scales, rows, 1, planes, bytes, L::kPaged ? plane : bytes, kBlockRows, 1},
                        TensorElement::kFloat, false, maps.scales),
        "scales as a tensor");
  return maps;
}

template <class L>
void launch(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  constexpr int kBytes = sizeof(GroupShared<L>) + alignof(GroupShared<L>) - 1024;
  static_assert(kBytes <= kSharedMemory);
  const auto kernel = scan_groups<L>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "shared memory");
  if (plan.counter_bytes > 0) {
    auto* counters = static_cast<std::uint8_t*>(p.workspace) + plan.lists_bytes + plan.merge_bytes;
    check(cudaMemsetAsync(counters, 0, plan.counter_bytes, stream), "counters");
  }
  kernel<<<plan.blocks, kThreads, kBytes, stream>>>(p, plan, describe_keys<L>(p));
  check(cudaGetLastError(), "launch");
}

template <bool kPaged>
void launch_e4m3(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  const bool few_heads = p.num_heads <= 32;
  switch (plan.columns_per_group) {
    case 1:
      return few_heads ? launch<Layout<E4m3, 1, 1, 32, 5, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 1, 1, 64, 5, kPaged>>(p, plan, stream);
    case 2:
      return few_heads ? launch<Layout<E4m3, 1, 2, 64, 5, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 1, 2, 128, 5, kPaged>>(p, plan, stream);
    case 4:
      return few_heads ? launch<Layout<E4m3, 1, 4, 128, 4, kPaged>>(p, plan, stream)
                       : launch<Layout<E4m3, 2, 2, 128, 8, kPaged>>(p, plan, stream);
    default:
      return p.num_heads <= 16 ? launch<Layout<E4m3, 1, 8, 128, 4, kPaged>>(p, plan, stream)
                               : launch<Layout<E4m3, 2, 4, 128, 8, kPaged>>(p, plan, stream);
  }
}

}  // namespace

void index_topk_cuda(const IndexTopkCudaParams& p, const IndexTopkPlan& plan, cudaStream_t stream) {
  if (plan.groups == 0) return;
  check_workspace(p, plan);
  if (p.format == IndexKeyFormat::kE4M3) {
    return p.block_table != nullptr ? launch_e4m3<true>(p, plan, stream)
                                    : launch_e4m3<false>(p, plan, stream);
  }
  return p.num_heads <= 32 ? launch<Layout<Bf16, 2, 4, 128, 3, false>>(p, plan, stream)
                           : launch<Layout<Bf16, 2, 2, 128, 3, false>>(p, plan, stream);
}

}  // namespace indexcache
