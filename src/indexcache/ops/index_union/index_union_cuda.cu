// index_union on a GPU: docs/kernels/index_union.md. A CTA merges the rows of one group in shared
// memory, two rows, then their union with the third. Every thread does an equal share of the merged
// sequence, which it finds by a search along the diagonal of the two lists.
#include <climits>

#include "indexcache/kernels/cuda_launch.cuh"
#include "indexcache/kernels/warp_sum.cuh"
#include "indexcache/ops/index_union/index_union_params.h"

namespace indexcache {
namespace {

struct List {
  const std::uint32_t* entries;  // ascending by id
  int size;
};

__device__ std::uint32_t id_of(std::uint32_t entry) { return entry & kUnionIdMask; }

// How many of the first `diagonal` entries of the merged sequence are a's; of equal ids a's comes
// first.
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

// A place in a list, with its entry in registers; beyond the end an id above all.
struct Place {
  __device__ Place(List list, int at) : list(list), at(at) { load(); }
  __device__ void advance() {
    ++at;
    load();
  }
  __device__ void load() {
    const bool inside = at < list.size;
    entry = inside ? list.entries[at] : 0;
    id = inside ? static_cast<int>(id_of(entry)) : INT_MAX;
  }

  List list;
  int at;
  std::uint32_t entry;
  int id;
};

// The thread's share of the merged sequence, without the second of two equal ids: their masks are
// joined in the first. Returns how many entries that is; writes them where `out` is given.
__device__ int merge_share(List a, List b, int i, int begin, int end, std::uint32_t* out) {
  Place in_a(a, i), in_b(b, begin - i);
  int last_of_a = i > 0 ? static_cast<int>(id_of(a.entries[i - 1])) : -1;
  int count = 0;
  for (int at = begin; at < end; ++at) {
    if (in_a.id <= in_b.id) {
      if (out) out[count] = in_a.entry | (in_a.id == in_b.id ? in_b.entry : 0);
      ++count;
      last_of_a = in_a.id;
      in_a.advance();
    } else {
      if (in_b.id != last_of_a) {
        if (out) out[count] = in_b.entry;
        ++count;
      }
      in_b.advance();
    }
  }
  return count;
}

// Of each thread's value the sum over the threads before it, and the sum over all.
template <int kThreads>
__device__ int sum_before(int value, int& total) {
  __shared__ int sums[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto through = static_cast<int>(device::sum_through(static_cast<unsigned>(value)));
  if (lane == 31) sums[warp] = through;
  __syncthreads();
  int before = through - value;
  total = 0;
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i < warp) before += sums[i];
    total += sums[i];
  }
  __syncthreads();  // sums may be written again
  return before;
}

// out = a u b. By all threads; out overlaps neither.
template <int kThreads>
__device__ List unite(List a, List b, std::uint32_t* out) {
  const int length = a.size + b.size;
  const int share =
      (length + kThreads - 1) / kThreads | 1;  // odd: threads in step read different banks
  const int begin = min(length, share * static_cast<int>(threadIdx.x)),
            end = min(length, begin + share);
  const int i = split_of(a, b, begin);
  int total;
  const int at = sum_before<kThreads>(merge_share(a, b, i, begin, end, nullptr), total);
  merge_share(a, b, i, begin, end, out + at);
  __syncthreads();
  return {out, total};
}

// Row `row` of indices into shared memory, its -1s dropped, as entries of the group's query j.
template <int kThreads>
__device__ List load_row(const IndexUnionParams& p, int row, int j, std::uint32_t* to) {
  int mine = 0;
  for (int i = threadIdx.x; i < p.top_k; i += kThreads) {
    const std::int32_t id = __ldg(p.indices + row * p.top_k + i);
    to[i] = (static_cast<std::uint32_t>(id) & kUnionIdMask) | 1u << (kUnionIdBits + j);
    mine += id >= 0;
  }
  int size;
  sum_before<kThreads>(mine, size);  // it synchronises, too
  return {to, size};
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    index_union_kernel(const __grid_constant__ IndexUnionParams p) {
  extern __shared__ std::uint32_t memory[];
  const std::int64_t group = blockIdx.x;
  const int first = p.group_begin[group], size = p.group_begin[group + 1] - first;
  const int k = static_cast<int>(p.top_k);
  // Rows are waited for one after the other: the later ones shall be in L2 by then.
  for (int i = k + 32 * threadIdx.x; i < size * k; i += 32 * kThreads)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.indices + std::int64_t{first} * k + i));
  // The second row lies where the end result will: it is not needed then.
  std::uint32_t *row = memory, *both = memory + k, *result = memory + 3 * k;
  List united = {both, 0};
  if (size > 0) united = load_row<kThreads>(p, first, 0, row);
  if (size > 1) united = unite<kThreads>(united, load_row<kThreads>(p, first + 1, 1, result), both);
  if (size > 2) united = unite<kThreads>(united, load_row<kThreads>(p, first + 2, 2, row), result);
  auto* out = reinterpret_cast<std::uint32_t*>(p.entries + group * p.entry_stride);
  for (int i = threadIdx.x; i < united.size; i += kThreads) out[i] = united.entries[i];
  if (threadIdx.x == 0) p.counts[group] = united.size;
}

template <int kThreads>
void launch(const IndexUnionParams& p, CUstream_st* stream) {
  const int bytes = static_cast<int>(p.top_k) * (3 + kGroupQueries) * 4;
  const auto kernel = index_union_kernel<kThreads>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "index_union");
  kernel<<<static_cast<unsigned>(p.num_groups), kThreads, bytes, stream>>>(p);
  check_launch("index_union");
}

}  // namespace

void index_union_cuda(const IndexUnionParams& p, CUstream_st* stream) {
  if (p.num_groups == 0) return;
  // Short rows are waited for, not worked on: the more of them at a time the better.
  p.top_k <= 512 ? launch<64>(p, stream) : launch<256>(p, stream);
}

}  // namespace indexcache
