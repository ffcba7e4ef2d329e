#include "indexcache/kernels/cpu_features.h"

#include "indexcache/kernels/simd_targets.h"
// after simd_targets.h
#include <hwy/highway.h>

namespace indexcache {

bool cpu_has_avx512_bf16() {
#if HWY_ARCH_X86 && defined(__GNUC__)
  // HWY_AVX3_DL: every CPU with AVX512-BF16 that is still sold detects as it.
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") &&
         (hwy::SupportedTargets() & HWY_AVX3_DL) != 0;
#else
  return false;
#endif
}

}  // namespace indexcache
