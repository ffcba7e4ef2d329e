// Runs a check once for every instruction set that Highway compiled and this CPU has.
#pragma once

#include <gtest/gtest.h>

#include "indexcache/kernels/simd_targets.h"
// after simd_targets.h
#include <hwy/highway.h>

#include <cstdint>
#include <functional>

namespace indexcache::testing {

inline void choose_targets(std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// Beside the single targets, all of them together (0): what a user's process chooses, including the
// kernels beyond Highway's targets (AVX512-BF16).
inline void for_each_cpu_target(const std::function<void()>& check) {
  choose_targets(0);
  {
    SCOPED_TRACE("all targets");
    check();
  }
  const std::int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  for (std::int64_t target = 1; target > 0; target <<= 1) {
    if ((supported & target) == 0) continue;
    choose_targets(target);
    SCOPED_TRACE(hwy::TargetName(target));
    check();
  }
  choose_targets(0);
}

}  // namespace indexcache::testing
