// Registers moved between the warpgroups of a block; all warps of one call it. Numbers a thread,
// multiples of 8. sm_90a.
#pragma once

namespace indexcache::device {

// Waits until others have given so many.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace indexcache::device
