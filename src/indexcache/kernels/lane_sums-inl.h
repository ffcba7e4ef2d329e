// Sums over the lanes of several vectors at once. Per target: include after hwy/highway.h in a file
// that hwy/foreach_target.h includes again and again.

#if defined(INDEXCACHE_KERNELS_LANE_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef INDEXCACHE_KERNELS_LANE_SUMS_INL_H_
#undef INDEXCACHE_KERNELS_LANE_SUMS_INL_H_
#else
#define INDEXCACHE_KERNELS_LANE_SUMS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace indexcache::HWY_NAMESPACE {

// v[0..lanes) hold lanes / kSlot slots of kSlot lanes each. Afterwards lane i of v[j] is the sum over
// slot j of what was v[i]. Neighbouring lanes are added until a slot is one lane: every sum takes the
// same tree.
template <int kSlot, class Tag>
HWY_INLINE void sum_slots([[maybe_unused]] Tag d,
                          [[maybe_unused]] hwy::HWY_NAMESPACE::Vec<Tag>* v) {
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
  constexpr int kSlots = kLanes / kSlot;
  static_assert(kSlots == 1 || kSlots == 2 || kSlots == 4);
#if HWY_TARGET != HWY_SCALAR
  HWY_UNROLL(8)
  for (int left = kLanes / 2; left >= kSlots; left /= 2) {
    HWY_UNROLL(8)
    for (int i = 0; i < left; ++i) {
      v[i] = hn::Add(hn::ConcatEven(d, v[2 * i + 1], v[2 * i]),
                     hn::ConcatOdd(d, v[2 * i + 1], v[2 * i]));
    }
  }
  // Now lanes hold vector-major sums, slots neighbours: take them apart.
  if constexpr (kSlots == 2) {
    const auto even = hn::ConcatEven(d, v[1], v[0]), odd = hn::ConcatOdd(d, v[1], v[0]);
    v[0] = even;
    v[1] = odd;
  } else if constexpr (kSlots == 4) {
    const auto even0 = hn::ConcatEven(d, v[1], v[0]), odd0 = hn::ConcatOdd(d, v[1], v[0]);
    const auto even1 = hn::ConcatEven(d, v[3], v[2]), odd1 = hn::ConcatOdd(d, v[3], v[2]);
    v[0] = hn::ConcatEven(d, even1, even0);
    v[1] = hn::ConcatEven(d, odd1, odd0);
    v[2] = hn::ConcatOdd(d, even1, even0);
    v[3] = hn::ConcatOdd(d, odd1, odd0);
  }
#endif
}

}  // namespace indexcache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
