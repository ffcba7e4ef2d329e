// index_union on a GPU: docs/kernels/index_union.md. A CTA merges the rows of one group in shared memory, two rows, then
// their union with the third. Every thread does an equal share of the merged sequence, which it finds by a search along
// the diagonal of the two lists.
#include <cuda_runtime.h>

#include "indexcache/ops/index_union/index_union_params.h"

namespace indexcache {
namespace {

constexpr int kThreads = 256;

struct List {
  const std::uint32_t* entries;  // ascending by id
  int size;
};

__device__ std::uint32_t id_of(std::uint32_t entry) { return entry & kUnionIdMask; }

// How many of the first `diagonal` entries of the merged sequence are a's; of equal ids a's comes first.
__device__ int split_of(List a, List b, int diagonal) {
  int low = max(0, diagonal - b.size), high = min(diagonal, a.size);
  while (low < high) {
    const int middle = (low + high) / 2;
    if (id_of(a.entries[middle]) <= id_of(b.entries[diagonal - 1 - middle])) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The thread's share of the merged sequence, without the second of two equal ids: their masks are joined in the first.
// Returns how many entries that is; writes them where `out` is given.
__device__ int merge_share(List a, List b, int i, int begin, int end, std::uint32_t* out) {
  int j = begin - i, count = 0;
  for (int at = begin; at < end; ++at) {
    const bool from_a = i < a.size && (j >= b.size || id_of(a.entries[i]) <= id_of(b.entries[j]));
    std::uint32_t entry;
    if (from_a) {
      entry = a.entries[i++];
      if (j < b.size && id_of(b.entries[j]) == id_of(entry)) entry |= b.entries[j];
    } else {
      entry = b.entries[j++];
      if (i > 0 && id_of(a.entries[i - 1]) == id_of(entry)) continue;
    }
    if (out) out[count] = entry;
    ++count;
  }
  return count;
}

// Of each thread's value the sum over the threads before it, and the sum over all.
__device__ int sum_before(int value, int& total) {
  __shared__ int sums[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xFFFFFFFF, inclusive, distance);
    if (lane >= distance) inclusive += other;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();
  int before = inclusive - value;
  total = 0;
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i < warp) before += sums[i];
    total += sums[i];
  }
  __syncthreads();  // sums may be written again
  return before;
}

// out = a u b. By all threads; out overlaps neither.
__device__ List unite(List a, List b, std::uint32_t* out) {
  const int length = a.size + b.size;
  const int share =
      (length + kThreads - 1) / kThreads | 1;  // odd: threads in step read different banks
  const int begin = min(length, share * static_cast<int>(threadIdx.x)),
            end = min(length, begin + share);
  const int i = split_of(a, b, begin);
  int total;
  const int at = sum_before(merge_share(a, b, i, begin, end, nullptr), total);
  merge_share(a, b, i, begin, end, out + at);
  __syncthreads();
  return {out, total};
}

// Row `row` of indices into shared memory, its -1s dropped, as entries of the group's query j.
__device__ List load_row(const IndexUnionParams& p, int row, int j, std::uint32_t* to) {
  int mine = 0;
  for (int i = threadIdx.x; i < p.top_k; i += kThreads) {
    const std::int32_t id = __ldg(p.indices + row * p.top_k + i);
    to[i] = (static_cast<std::uint32_t>(id) & kUnionIdMask) | 1u << (kUnionIdBits + j);
    mine += id >= 0;
  }
  int size;
  sum_before(mine, size);  // it synchronises, too
  return {to, size};
}

__global__ void __launch_bounds__(kThreads)
    index_union_kernel(const __grid_constant__ IndexUnionParams p) {
  extern __shared__ std::uint32_t memory[];
  const std::int64_t group = blockIdx.x;
  const int first = p.group_begin[group], size = p.group_begin[group + 1] - first;
  const int k = static_cast<int>(p.top_k);
  // The second row lies where the end result will: it is not needed then.
  std::uint32_t *row = memory, *both = memory + k, *result = memory + 3 * k;
  List united = {both, 0};
  if (size > 0) united = load_row(p, first, 0, row);
  if (size > 1) united = unite(united, load_row(p, first + 1, 1, result), both);
  if (size > 2) united = unite(united, load_row(p, first + 2, 2, row), result);
  auto* out = reinterpret_cast<std::uint32_t*>(p.entries + group * p.entry_stride);
  for (int i = threadIdx.x; i < united.size; i += kThreads) out[i] = united.entries[i];
  if (threadIdx.x == 0) p.counts[group] = united.size;
}

}  // namespace

int index_union_cuda(const IndexUnionParams& p, void* stream) {
  if (p.num_groups == 0) return cudaSuccess;
  const int bytes = static_cast<int>(p.top_k) * (3 + kGroupQueries) * 4;
  const cudaError_t error =
      cudaFuncSetAttribute(index_union_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  index_union_kernel<<<static_cast<unsigned>(p.num_groups), kThreads, bytes,
                       static_cast<cudaStream_t>(stream)>>>(p);
  return cudaGetLastError();
}

}  // namespace indexcache
