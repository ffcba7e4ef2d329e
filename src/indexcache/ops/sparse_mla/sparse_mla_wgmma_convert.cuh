// The converting warpgroup: e4m3 latents to bf16, in place. A part's values are copied as they are to
// where the second half of the same rows' bf16 values will stand, their scales to the first half.
#pragma once

#include "indexcache/kernels/e4m3.cuh"
#include "indexcache/kernels/shared_access.cuh"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_tile.cuh"

namespace indexcache::device {

// Where values 8 i to 8 i + 7 of a part's row stand before: so that the lanes of two rows reach all
// banks.
__device__ constexpr int raw_offset(int row, int i) {
  const int chunk = i / 2 ^ row % 2 * 4;
  return (2 + chunk / 8) * kBlockBytes + row * 128 + chunk % 8 * 16 + i % 2 * 8;
}

__device__ inline std::uint32_t values_of(std::uint32_t tile, Part part) {
  return tile + (part == kLeftPart ? 0 : kLeftBlocks) * kBlockBytes;
}

// What a lane has of a row: eight values of each block, and two scales.
struct RawRow {
  uint2 values[kPartBlocks], scales;
};
__device__ inline RawRow read_raw(std::uint32_t values, Part part, int row, int lane) {
  RawRow raw;
#pragma unroll
  for (int block = 0; block < kPartBlocks; ++block)
    raw.values[block] = load_8(values + raw_offset(row, 8 * block + lane));
  raw.scales = load_8(values + swizzled_offset(row, 0) + 8 * part);
  return raw;
}

__device__ inline void write_converted(std::uint32_t values, int row, int lane, const RawRow& raw) {
  const float scales[2] = {__uint_as_float(raw.scales.x), __uint_as_float(raw.scales.y)};
  const std::uint32_t to = values + swizzled_offset(row, lane);
#pragma unroll
  for (int block = 0; block < kPartBlocks; ++block) {
    store_16(to + block * kBlockBytes,
             e4m3_to_bf16(raw.values[block], pack_bf16(scales[block / 2], scales[block / 2])));
  }
}

// Eight lanes of one warp share a row: all have read it before any writes, and they read the next
// before that.
__device__ inline void convert_part(std::uint32_t tile, Part part, int first, int lane) {
  const std::uint32_t values = values_of(tile, part);
  RawRow next = read_raw(values, part, first, lane);
#pragma unroll
  for (int round = 0; round < kRowRounds; ++round) {
    const RawRow raw = next;
    const int row = first + round * kRowsAtOnce;
    if (round + 1 < kRowRounds) next = read_raw(values, part, row + kRowsAtOnce, lane);
    __syncwarp();
    write_converted(values, row, lane, raw);
  }
}

template <EntryKind kKind, EntrySplit kSplit>
__device__ inline void convert(const Launch& p, Shared& shared) {
  const int thread = threadIdx.x % kWarpgroup, lane = thread % kRowLanes,
            first = thread / kRowLanes;
  Walk<kKind, kSplit> walk(p, shared);
  for (int n = 0; walk.next_pair(); ++n) {
#pragma unroll 1
    for (int i = 0; i < kPairParts; ++i) {
      const auto [tile, part] = part_in_order(i);
      mbarrier_wait(&shared.raw[tile][part], n & 1);
      if (tile == 0 || walk.has_both())
        convert_part(shared_address(shared.kv[tile]), part, first, lane);
      mbarrier_arrive(&shared.full[tile][part]);
    }
  }
}

}  // namespace indexcache::device
