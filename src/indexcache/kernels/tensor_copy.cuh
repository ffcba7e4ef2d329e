// Copies of boxes of a tensor to shared memory by the tensor memory accelerator: one thread asks, an
// mbarrier counts the bytes as they land. What lies outside the tensor arrives as zeros. sm_90.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "indexcache/kernels/mbarrier.cuh"

namespace indexcache {

// A tensor of `planes` planes of `rows` rows of `columns` elements, and the box of one plane that a
// copy takes. Strides in bytes, multiples of 16, as is the address.
struct TensorBox {
  const void* address;
  std::uint64_t columns, rows, planes;
  std::uint64_t row_stride, plane_stride;
  std::uint32_t box_columns, box_rows;
};
enum class TensorElement { kByte, kFloat };

// For kernels, as a __grid_constant__ argument. `swizzled`: rows of 128 bytes come as rows_operand of
// wgmma_bf16.cuh wants them.
inline cudaError_t describe_tensor(const TensorBox& t, TensorElement element, bool swizzled,
                                   CUtensorMap& map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {t.columns, t.rows, t.planes};
  const cuuint64_t strides[] = {t.row_stride, t.plane_stride};
  const cuuint32_t box[] = {t.box_columns, t.box_rows, 1}, steps[] = {1, 1, 1};
  const CUresult result = reinterpret_cast<Encode>(entry)(
      &map,
      element == TensorElement::kByte ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                      : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      3, const_cast<void*>(t.address), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

namespace device {

// Has a copy's map at hand, before the first copy.
__device__ __forceinline__ void fetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box that begins at these coordinates, to `to`, a multiple of 128 bytes (1024 if swizzled).
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap& map, int column,
                                         int row, int plane, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(plane), "r"(shared_address(barrier))
      : "memory");
}

// How L2 keeps what is copied: what is read once is the first that it drops.
__device__ __forceinline__ std::uint64_t l2_policy(bool read_once) {
  std::uint64_t first, normal;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
  return read_once ? first : normal;
}
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap& map, int column,
                                         int row, int plane, std::uint64_t* barrier,
                                         std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(plane), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

// Arrives `arrivals` times and has the barrier's phase wait for so many bytes of copies.
__device__ __forceinline__ void mbarrier_expect(std::uint64_t* barrier, int bytes, int arrivals) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

}  // namespace device
}  // namespace indexcache
