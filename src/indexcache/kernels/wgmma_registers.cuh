// wgmma with A in registers and B, n rows of 128 bytes, in shared memory: 64 x n results. sm_90a.
//
// Fragments, for thread t of a warpgroup (warp w = t / 32, g = t % 32 / 4, c = t % 4):
//   D (64 x n, fp32)  d[4 j + 2 r + e] is row 16 w + g + 8 r, column 8 j + 2 c + e
//   A (64 x 32 bytes) a[r + 2 h] is row 16 w + g + 8 r, bytes 16 h + 4 c .. + 3
//   B                 rows_operand of wgmma_bf16.cuh, whatever the element type
#pragma once

#include <cstdint>

#include "indexcache/kernels/wgmma_accumulators.cuh"
#include "indexcache/kernels/wgmma_bf16.cuh"

namespace indexcache::device {

// Makes what this thread wrote to shared memory visible to the matrix instructions (which read it
// through another path); a barrier must follow.
__device__ __forceinline__ void fence_shared_for_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// D (+)= A B^T, 32 e4m3 of K; n = 32, 64, 128.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[16], const std::uint32_t (&a)[4],
                                           std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, keep, 1, 1;\n}\n"
      : INDEXCACHE_ACC_16(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
__device__ __forceinline__ void wgmma_e4m3(float (&d)[32], const std::uint32_t (&a)[4],
                                           std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, keep, 1, 1;\n}\n"
      : INDEXCACHE_ACC_32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
__device__ __forceinline__ void wgmma_e4m3(float (&d)[64], const std::uint32_t (&a)[4],
                                           std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, keep, 1, 1;\n}\n"
      : INDEXCACHE_ACC_64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

// D (+)= A B^T, 16 bf16 of K; n = 128.
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], const std::uint32_t (&a)[4],
                                           std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, keep, 1, 1, 0;\n}\n"
      : INDEXCACHE_ACC_64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

}  // namespace indexcache::device
