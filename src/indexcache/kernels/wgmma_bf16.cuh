// wgmma for bf16 operands with fp32 accumulators, as sparse attention needs them, and the
// descriptors of operands in shared memory. sm_90a.
//
// An operand in shared memory is made of blocks of 64 columns: 128 bytes a row, rows 128 bytes
// apart, in which the 16-byte chunk c of row r stands at place c ^ (r % 8) ("128-byte swizzle"); a
// block starts at a multiple of 1024 bytes.
//   swizzled_offset(r, c)   where chunk c of row r stands
//   rows_operand(address)   the block's rows are M or N, 16 of its columns are K (the next 16: + 32
//                           bytes)
//   columns_operand(...)    the transpose: 16 of its rows are K (the next 16: + 2048 bytes),
//                           columns are N; the block of the next 64 columns stands block_bytes
//                           further on
//
// Accumulators of a 64 x N tile, thread t of the 128: element 4 j + 2 i + e is row 16 (t / 32) + t
// % 32 / 4 + 8 i, column 8 j + 2 (t % 4) + e. As a register operand with 16 columns of K, four
// registers hold, for (j, i) = (0, 0), (0, 1), (1, 0), (1, 1), the pair e = 0, 1.
#pragma once

#include <cstdint>

#include "indexcache/kernels/wgmma_accumulators.cuh"

namespace indexcache::device {

__device__ constexpr std::uint32_t swizzled_offset(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

// Groups of 8 rows are 1024 bytes apart; 1 in the top bits: 128-byte swizzle.
__device__ constexpr std::uint64_t rows_operand(std::uint32_t address) {
  return (std::uint64_t{1} << 62) | (std::uint64_t{1024 >> 4} << 32) | (std::uint64_t{1} << 16) |
         ((address & 0x3FFFF) >> 4);
}
__device__ inline std::uint64_t columns_operand(std::uint32_t address, std::uint32_t block_bytes) {
  return (std::uint64_t{1} << 62) | (std::uint64_t{1024 >> 4} << 32) |
         (std::uint64_t{block_bytes >> 4} << 16) | ((address & 0x3FFFF) >> 4);
}

// Before the first wgmma after this thread touched accumulators or register operands.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of accumulators across the waits above.
template <int kCount>
__device__ inline void wgmma_pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d (+)= a b^T: a 64 x 16, b 64 x 16, both rows_operand.
__device__ inline void wgmma_64x64_rows(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                        bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, keep, 1, 1, 0, 0;\n"
      "}\n"
      : INDEXCACHE_ACC_32(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

// d (+)= a b: a 64 x 16 in registers, b 16 x 256, columns_operand.
__device__ inline void wgmma_64x256_columns(float (&d)[128], const std::uint32_t* a,
                                            std::uint64_t b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, {%128, %129, %130, %131}, %132, keep, 1, 1, 1;\n"
      "}\n"
      : INDEXCACHE_ACC_128(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

// d (+)= a b: a 64 x 16, rows_operand, b 16 x 256, columns_operand.
__device__ inline void wgmma_64x256_columns(float (&d)[128], std::uint64_t a, std::uint64_t b,
                                            bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, keep, 1, 1, 0, 1;\n"
      "}\n"
      : INDEXCACHE_ACC_128(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

// d (+)= a b: a 64 x 16 in registers, b 16 x 128, columns_operand.
__device__ inline void wgmma_64x128_columns(float (&d)[64], const std::uint32_t* a, std::uint64_t b,
                                            bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, keep, 1, 1, 1;\n"
      "}\n"
      : INDEXCACHE_ACC_64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

// d (+)= a b: a 64 x 16, rows_operand, b 16 x 128, columns_operand.
__device__ inline void wgmma_64x128_columns(float (&d)[64], std::uint64_t a, std::uint64_t b,
                                            bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, keep, 1, 1, 0, 1;\n"
      "}\n"
      : INDEXCACHE_ACC_64(d)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

// Two floats rounded to nearest even; `first` in the low half, which is the lower column.
__device__ inline std::uint32_t pack_bf16(float first, float second) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  return packed;
}

}  // namespace indexcache::device
