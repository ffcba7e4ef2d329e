// wgmma with both operands in shared memory: 64 x n results, fp32. sm_90a.
//
// A is 64 rows of 128 bytes, B n rows of 128 bytes, each a rows_operand of wgmma_bf16.cuh, whatever
// the element type; one product takes 32 bytes of K (the next: + 32 bytes). Thread t of a
// warpgroup (warp w = t / 32, g = t % 32 / 4, c = t % 4) holds in d[4 j + 2 r + e] the result of
// row 16 w + g + 8 r, column 8 j + 2 c + e.
#pragma once

#include <cstdint>

#include "indexcache/kernels/wgmma_accumulators.cuh"
#include "indexcache/kernels/wgmma_bf16.cuh"

namespace indexcache::device {

// D (+)= A B^T, 32 e4m3 of K; n = 32, 64, 128.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[16], std::uint64_t a, std::uint64_t b,
                                           bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, keep, 1, 1;\n}\n"
      : INDEXCACHE_ACC_16(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}
__device__ __forceinline__ void wgmma_e4m3(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                           bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, keep, 1, 1;\n}\n"
      : INDEXCACHE_ACC_32(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}
#define INDEXCACHE_D64                                                               \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
__device__ __forceinline__ void wgmma_e4m3(float (&d)[64], std::uint64_t a, std::uint64_t b,
                                           bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " INDEXCACHE_D64
      "%64, %65, keep, 1, 1;\n}\n"
      : INDEXCACHE_ACC_64(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

// D (+)= A B^T, 16 bf16 of K; n = 128.
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], std::uint64_t a, std::uint64_t b,
                                           bool accumulate) {
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " INDEXCACHE_D64
      "%64, %65, keep, 1, 1, 0, 0;\n}\n"
      : INDEXCACHE_ACC_64(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}
#undef INDEXCACHE_D64

}  // namespace indexcache::device
