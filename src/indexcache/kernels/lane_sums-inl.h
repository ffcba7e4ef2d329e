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

// Lane i of the result = the sum over lanes of v[i], for kCount = the lanes of Tag. Neighbouring
// lanes are added until one is left: every vector's sum takes the same tree.
template <class Tag, std::size_t kCount>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<Tag> sum_lanes([[maybe_unused]] Tag d,
                                                  const hwy::HWY_NAMESPACE::Vec<Tag>* v) {
#if HWY_TARGET == HWY_SCALAR
  static_assert(kCount == 1);
#else
  namespace hn = hwy::HWY_NAMESPACE;
  if constexpr (kCount > 1) {
    const auto low = sum_lanes<Tag, kCount / 2>(d, v);
    const auto high = sum_lanes<Tag, kCount / 2>(d, v + kCount / 2);
    return hn::Add(hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low));
  }
#endif
  return v[0];
}

}  // namespace indexcache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
