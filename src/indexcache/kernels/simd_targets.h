// Which instruction sets the Highway kernels are compiled for. Include before any Highway header.
//
// x86: AVX-512 (HWY_AVX3), AVX2, and Highway's portable emulation for anything older. Arm: NEON.
// The kernels keep register tiles in arrays of vectors, which the sizeless vectors of SVE and RVV
// do not allow.
#pragma once

#ifdef HIGHWAY_HWY_DETECT_TARGETS_H_
#error "include indexcache/kernels/simd_targets.h before Highway's headers"
#endif

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
