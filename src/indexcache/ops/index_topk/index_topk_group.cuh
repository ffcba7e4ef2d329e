// What the pieces of a group of queries share in device memory.
#pragma once

#include "indexcache/ops/index_topk/index_topk_layout.cuh"

namespace indexcache::index_topk_device {

// In IndexTopkCudaParams::counters.
struct alignas(16) GroupCounters {
  unsigned calls;      // so far
  unsigned given_out;  // runs, of those that no stream has from the start; 0 between calls
  unsigned done;       // pieces; 0 between calls
};
__device__ __forceinline__ GroupCounters* group_counters(const IndexTopkCudaParams& p, int group) {
  return static_cast<GroupCounters*>(p.counters) + group;
}

// A number that no other group has, and no call of this one had before.
__device__ __forceinline__ unsigned call_tag(unsigned calls, int group) {
  return (calls << 10 | static_cast<unsigned>(group)) * 0x9E3779B1u ^ 0x85EBCA77u;
}

// In the workspace behind the lists: [M][kMostShared] slots of the sample, then [M][pieces] of what the
// pieces have found.
//
// A slot holds the rank of a sampled key's score above the call's tag, so that who reads it knows by itself whether it is
// there: no fence, no counter to wait for. The last block clears them. What else was in the workspace, if it were
// taken for a slot, would make a poor threshold, and no wrong result.
using SampleSlot = unsigned long long;
__device__ __forceinline__ SampleSlot sample_slot(std::uint32_t rank, unsigned tag) {
  return SampleSlot{rank} << 32 | tag;
}
__device__ __forceinline__ void write_slot(SampleSlot* slot, SampleSlot value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(slot)),
               "l"(value)
               : "memory");
}
__device__ __forceinline__ SampleSlot read_slot(const SampleSlot* slot) {
  SampleSlot value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(__cvta_generic_to_global(slot))
               : "memory");
  return value;
}
__device__ __forceinline__ SampleSlot* sample_slots(const IndexTopkCudaParams& p,
                                                    const IndexTopkPlan& plan, int query) {
  auto* all = static_cast<std::uint8_t*>(p.workspace) + plan.lists_bytes;
  return reinterpret_cast<SampleSlot*>(all) + std::int64_t{query} * kMostShared;
}

struct PieceList {
  RankedKey bound;  // all keys of the piece that reach it are in its block's list
  int size;
};
__device__ __forceinline__ PieceList* piece_lists(const IndexTopkCudaParams& p,
                                                  const IndexTopkPlan& plan, int query) {
  return reinterpret_cast<PieceList*>(sample_slots(p, plan, p.num_queries)) +
         std::int64_t{query} * plan.pieces;
}

// The sample of a group, and a piece's part of it: places of it, one tile at most. Strata of whole keys, which leave
// out the first few of the range, are quicker to tell than even ones.
template <class L>
__device__ __forceinline__ KeyWalk sample_of_group(const KeyWalk& keys, int pieces) {
  const int count = min(keys.count / L::kSampleShare, min(kMostShared, pieces * L::kTileKeys));
  const unsigned stratum = static_cast<unsigned>(keys.count) / static_cast<unsigned>(count);
  const int left_out = keys.count - static_cast<int>(stratum) * count;
  return {keys.first + left_out, count, stratum, static_cast<unsigned long long>(stratum) << 32};
}
struct SamplePart {
  KeyWalk walk;  // up to the part's end
  int first;
};
template <class L>
__device__ __forceinline__ SamplePart sample_of_piece(const KeyWalk& keys, int piece, int pieces) {
  SamplePart part{sample_of_group<L>(keys, pieces), 0};
  const int each = (part.walk.count + pieces - 1) / pieces;
  part.first = min(piece * each, part.walk.count);
  part.walk.count = min(part.first + each, part.walk.count);
  return part;
}

}  // namespace indexcache::index_topk_device
