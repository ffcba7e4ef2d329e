// The ways in which the Hopper kernels hand shared memory from one warp to another, each alone, with
// its result checked. Under compute-sanitizer's racecheck it shows which of them that tool knows
// (docs/kernels/sparse_mla.md).
#include <cstdio>

#include "indexcache/kernels/cluster.cuh"
#include "indexcache/kernels/cp_async.cuh"
#include "indexcache/kernels/mbarrier.cuh"
#include "support/device_check.h"

namespace indexcache::testing {
namespace {

using namespace device;

constexpr int kRounds = 3, kManyRounds = 40;

struct Shared {
  alignas(16) int value[32];
  int back[32];
  std::uint64_t full, empty;
};

__device__ void prepare(Shared& shared, int full, int empty) {
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full, full);
    mbarrier_init(&shared.empty, empty);
    mbarrier_init_fence();
  }
  __syncthreads();
}

__device__ int other_lane() { return (threadIdx.x + 5) % 32; }

// Every lane of the first warp arrives for what it wrote.
__global__ void all_arrive(const int* in, int* out) {
  __shared__ Shared shared;
  prepare(shared, 32, 1);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    shared.value[lane] = in[lane];
    mbarrier_arrive(&shared.full);
  } else {
    mbarrier_wait(&shared.full, 0);
    out[lane] = shared.value[other_lane()];
  }
}

// One lane arrives for its warp.
__global__ void one_arrives(const int* in, int* out) {
  __shared__ Shared shared;
  prepare(shared, 1, 1);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    shared.value[lane] = in[lane];
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&shared.full);
  } else {
    mbarrier_wait(&shared.full, 0);
    out[lane] = shared.value[other_lane()];
  }
}

// One lane arrives for two warps that have met at a numbered barrier.
__global__ void met_before(const int* in, int* out) {
  __shared__ Shared shared;
  prepare(shared, 1, 1);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp < 2) {
    if (lane / 16 == warp) shared.value[lane] = in[lane];
    barrier_sync(1, 64);
    if (threadIdx.x == 0) mbarrier_arrive(&shared.full);
  } else {
    mbarrier_wait(&shared.full, 0);
    out[lane] = shared.value[other_lane()];
  }
}

// All warps but the last meet at barrier 0, again and again, for what they write to each other; the last waits
// for an mbarrier meanwhile.
__global__ void met_without_one(const int* in, int* out) {
  __shared__ Shared shared;
  prepare(shared, 1, 1);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warps = static_cast<int>(blockDim.x) / 32 - 1;
  if (warp == warps) {
    mbarrier_wait(&shared.full, 0);
    out[lane] = shared.value[other_lane()];
    return;
  }
  int sum = 0;
  for (int n = 0; n < kRounds; ++n) {
    if (lane % warps == warp) shared.back[lane] = in[lane] + n;
    barrier_sync(0, 32 * warps);
    sum += shared.back[lane];
    barrier_sync(0, 32 * warps);
  }
  if (lane % warps == warp) shared.value[lane] = sum;
  barrier_sync(0, 32 * warps);
  if (threadIdx.x == 0) mbarrier_arrive(&shared.full);
}

// A buffer goes to and fro: one lane gives it back for its warp.
__global__ void given_back(const int* in, int* out) {
  __shared__ Shared shared;
  prepare(shared, 32, 1);
  const int lane = threadIdx.x % 32;
  int sum = 0;
  for (int n = 0; n < kRounds; ++n) {
    if (threadIdx.x < 32) {
      mbarrier_wait(&shared.empty, (n & 1) ^ 1);
      shared.value[lane] = in[lane] + n;
      mbarrier_arrive(&shared.full);
    } else {
      mbarrier_wait(&shared.full, n & 1);
      sum += shared.value[other_lane()];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&shared.empty);
    }
  }
  if (threadIdx.x >= 32) out[lane] = sum;
}

// Copies complete an mbarrier together with a store; a second warp waits for it and lets a third know
// by a numbered barrier, which gives the buffer back.
__global__ void passed_on(const int* in, int* out) {
  __shared__ Shared shared;
  prepare(shared, 33, 1);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = 0;
  for (int n = 0; n < kRounds; ++n) {
    if (warp == 0) {
      mbarrier_wait(&shared.empty, (n & 1) ^ 1);
      copy_16(shared_address(shared.value + 4 * (lane % 8)), in + 4 * (lane % 8), true);
      mbarrier_arrive_after_copies(&shared.full);
      if (lane == 0) {
        shared.back[0] = n;
        mbarrier_arrive(&shared.full);
      }
    } else if (warp == 1) {
      mbarrier_wait(&shared.full, n & 1);
      barrier_arrive(1, 64);
    } else {
      barrier_sync(1, 64);
      sum += shared.value[other_lane()] + shared.back[0];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&shared.empty);
    }
  }
  if (warp == 0) wait_for_copies();
  if (warp == 2) out[lane] = sum;
}

// Two warps leave each other something by turns at two places, and meet at one numbered barrier each time, to which
// they come from two places of the code, by the form for where others have ended, as the third has.
__global__ void met_by_turns(const int* in, int* out) {
  __shared__ int value[2][2][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = 0;
  if (warp == 0) {
    for (int n = 0; n < kRounds; ++n) {
      value[n & 1][0][lane] = n;
      barrier_sync_apart(1, 64);
      sum += value[n & 1][1][other_lane()];
    }
    out[lane] = sum;
  } else if (warp == 1) {
    for (int n = 0; n < kRounds; ++n) {
      value[n & 1][1][lane] = in[lane] + n;
      barrier_sync_apart(1, 64);
      sum += value[n & 1][0][other_lane()];
    }
    if (sum != kRounds * (kRounds - 1) / 2) __trap();
  }
}

// Four warps meet at one numbered barrier again and again, each for what another has left it. Before that two of them
// have met once at a barrier of their own, and the other two `times` times at theirs.
template <int times>
__global__ void met_apart_before(const int* in, int* out) {
  __shared__ int value[2][4][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int n = 0; n < (warp < 2 ? 1 : times); ++n) barrier_sync(2 + warp / 2, 64);
  int sum = 0;
  for (int n = 0; n < kManyRounds; ++n) {
    value[n & 1][warp][lane] = in[lane] + n;
    barrier_sync(1, 128);
    sum += value[n & 1][(warp + 2) % 4][other_lane()];
  }
  if (blockIdx.x == 0 && warp == 0) out[lane] = sum;
}

// Two warps answer each other by two numbered barriers, the first waiting last.
__global__ void answered(const int* in, int* out) {
  __shared__ Shared shared;
  const int lane = threadIdx.x % 32;
  int sum = 0;
  for (int n = 0; n < kRounds; ++n) {
    if (threadIdx.x < 32) {
      shared.value[lane] = in[lane] + n;
      barrier_arrive(1, 64);
      barrier_sync(2, 64);
      sum += shared.back[other_lane()];
      __syncwarp();
    } else {
      barrier_sync(1, 64);
      const int found = shared.value[lane];
      __syncwarp();
      shared.back[lane] = found;
      barrier_arrive(2, 64);
    }
  }
  if (threadIdx.x < 32) out[lane] = sum;
}

// Some threads write after a cluster's barrier, all of their CTA read after its own; a numbered barrier
// went before.
__global__ void __cluster_dims__(2) after_cluster(const int* in, int* out) {
  __shared__ Shared shared;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    shared.back[lane] = in[lane];
    barrier_arrive(1, 64);
  } else if (threadIdx.x < 64) {
    barrier_sync(1, 64);
  }
  cluster_sync();
  if (threadIdx.x < 32) {
    const std::uint32_t peer = peer_address(shared_address(&shared.back[lane]), 1 - cluster_rank());
    shared.value[lane] = __float_as_int(read_peer(peer));
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x >= 32) out[lane] = shared.value[other_lane()];
  cluster_meet();
}

using Kernel = void(const int*, int*);

void check(const char* name, Kernel* kernel, int warps, int ctas, int times, int more) {
  std::vector<int> in(32), expected(32);
  for (int i = 0; i < 32; ++i) in[i] = 100 + i * i;
  for (int i = 0; i < 32; ++i) expected[i] = times * in[(i + 5) % 32] + more;
  const DeviceArray<int> from(in), to(32);
  kernel<<<ctas, 32 * warps>>>(from.data(), to.data());
  finish_device(name);
  std::printf("%s\n", name);
  expect(to.copy() == expected, name);
}

}  // namespace
}  // namespace indexcache::testing

int main() {
  using namespace indexcache::testing;
  if (!find_device()) return kNoDevice;
  check("all lanes arrive", all_arrive, 2, 1, 1, 0);
  check("one lane arrives for its warp", one_arrives, 2, 1, 1, 0);
  check("one lane arrives for two warps that met", met_before, 3, 1, 1, 0);
  check("all warps but one meet", met_without_one, 17, 1, 3, 3);
  check("one lane gives back for its warp", given_back, 2, 1, 3, 3);
  check("passed on by a second warp", passed_on, 3, 1, 3, 3);
  check("met by turns", met_by_turns, 3, 1, 3, 3);
  constexpr int kManySum = kManyRounds * (kManyRounds - 1) / 2;
  check("met apart before, as often", met_apart_before<1>, 4, 8, kManyRounds, kManySum);
  check("met apart before, more often", met_apart_before<2>, 4, 8, kManyRounds, kManySum);
  check("answered", answered, 2, 1, 3, 3);
  check("after a cluster's barrier", after_cluster, 4, 2, 1, 0);
  return device_result("mbarrier");
}
