// Pieces: which keys a block walks. The keys of a group are in runs of 64; each stream of each of its blocks
// has as many of them as the others, and the last eighth is given out as streams come to want more:
// multiprocessors get keys at rates that differ by 6 %.
#pragma once

#include "indexcache/ops/index_topk/index_topk_group.cuh"
#include "indexcache/ops/index_topk/index_topk_keys.cuh"

namespace indexcache::index_topk_device {

// A stream's runs of a walk over all keys of a group: own ones, every streams-th from the first on, then, where
// there is a counter, others from `shared_from` on. Run i has the keys from 64 i on.
struct StreamRuns {
  int total, first, step, own, shared_from;
  unsigned* given_out;  // null: none
  __device__ __forceinline__ int own_run(int i) const { return first + i * step; }
};
__device__ __forceinline__ int runs_of(const KeyWalk& keys) {
  return (keys.count + kBlockRows - 1) / kBlockRows;
}
// All of a walk by one block.
template <class L>
__device__ __forceinline__ StreamRuns whole_runs(const KeyWalk& keys, int stream) {
  const int total = runs_of(keys);
  return {total, stream, L::kStreams, (total - stream + L::kStreams - 1) / L::kStreams, 0, nullptr};
}
// A piece's share.
template <class L>
__device__ __forceinline__ StreamRuns piece_runs(const KeyWalk& keys, int piece, int pieces,
                                                 int stream, unsigned* given_out) {
  constexpr int kWorthGiving = 16;  // a run takes a microsecond to give out, which few do not hide
  const int total = runs_of(keys), streams = pieces * L::kStreams;
  const int first = piece * L::kStreams + stream, each = total / streams;
  if (each < kWorthGiving) {
    return {total, first, streams, max(total - first + streams - 1, 0) / streams, 0, nullptr};
  }
  const int own = each - each / 8;
  return {total, first, streams, own, own * streams, given_out};
}

// Behind how many of its runs a stream has its part of the sample, if any: which the scorers ask for, and which comes
// later than the first runs.
__device__ __forceinline__ int runs_before_sample(const StreamRuns& runs) {
  return min(runs.own, 2);
}

// A warp that fetches a stream.
template <class L>
struct RunFetcher {
  static constexpr int kRunBytes = L::kBlockBytes + (L::Format::kHasScale ? kBlockRows * 4 : 0);

  const IndexTopkCudaParams& p;
  const KeyMaps& maps;
  int request;
  GroupShared<L>& shared;
  RingPlace<L::kStages> place{};  // of the next run
  int stream = static_cast<int>(threadIdx.x) % kFetchers / 32;
  int lane = static_cast<int>(threadIdx.x) % 32;

  __device__ __forceinline__ int page_of_run(const KeyWalk& keys, int run) const {
    if (!L::kPaged) return 0;
    return page_index(p, request, min(keys.first + run * kBlockRows, keys.first + keys.count - 1));
  }

  // One run, once the ring has room.
  __device__ __forceinline__ void fetch_run(const KeyWalk& keys, int run, int page, bool last) {
    std::uint64_t* full = &shared.full[place.stage][stream];
    mbarrier_wait(&shared.empty[place.stage][stream], place.parity ^ 1);
    if (lane == 0) {
      // A request's keys are no other's, and drop out of L2 before what the pieces share, and before code.
      const std::uint64_t policy = l2_policy(p.tokens_per_request > 0);
      const int key = L::kPaged ? 0 : keys.first + run * kBlockRows;
      shared.run[place.stage][stream] = run * kBlockRows | (last ? kLastRun : 0u);
      mbarrier_expect(full, kRunBytes, 1);
#pragma unroll
      for (int half = 0; half < L::kHalves; ++half) {
        const int to = stream * L::kBlockBytes + half * (kBlockRows * 128);
        copy_box(shared_address(shared.keys[place.stage] + to), maps.rows, half * 128, key, page,
                 full, policy);
      }
      if constexpr (L::Format::kHasScale) {
        copy_box(shared_address(shared.scales[place.stage] + stream * kBlockRows), maps.scales, key,
                 0, page, full, policy);
      }
    }
    __syncwarp();
    place = place.next();
  }

  // The stream of a walk over all keys of a group, with a part of a sample in it if that is `sampled`.
  __device__ __forceinline__ void fetch(const KeyWalk& keys, const StreamRuns& runs, bool sampled) {
    const int sample = sampled ? runs_before_sample(runs) : -1;
    int pages = page_of_run(keys, runs.own_run(lane)),
        next = page_of_run(keys, runs.own_run(32 + lane));
    int given = 0;
    if (runs.given_out != nullptr && lane == 0) given = take(runs, 2);
    int run = runs.total;  // the first that is given out
    for (int i = 0; i < runs.own; ++i) {
      if (i == sample) place = place.next();
      if (L::kPaged && i > 0 && i % 32 == 0) {
        pages = next;
        next = page_of_run(keys, runs.own_run(i + 32 + lane));
      }
      const int page = L::kPaged ? __shfl_sync(kAllLanes, pages, i % 32) : 0;
      const bool last = i + 1 == runs.own;
      if (last && runs.given_out != nullptr) run = __shfl_sync(kAllLanes, given, 0);
      fetch_run(keys, runs.own_run(i), page, last && run >= runs.total && sample != runs.own);
    }
    if (sample == runs.own) place = place.next();
    if (run < runs.total) fetch_given(keys, runs, run, run + 1);
  }

  // Lane 0: the first of `count` runs that are given out to this stream.
  static __device__ __forceinline__ int take(const StreamRuns& runs, unsigned count) {
    return runs.shared_from + static_cast<int>(atomicAdd(runs.given_out, count));
  }
  // Runs as they are given out. What comes after the next one, and where that is, is found out while the ring has no room.
  __device__ __forceinline__ void fetch_given(const KeyWalk& keys, const StreamRuns& runs, int run,
                                              int later) {
    int page = page_of_run(keys, run);
    while (run < runs.total) {
      int given = runs.total;
      if (later < runs.total && lane == 0) given = take(runs, 1);
      const int later_page = page_of_run(keys, later);
      fetch_run(keys, run, page, later >= runs.total);
      run = later;
      page = later_page;
      later = __shfl_sync(kAllLanes, given, 0);
    }
  }
};

}  // namespace indexcache::index_topk_device
