#include "indexcache/kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "indexcache/kernels/top_candidates.cpp"
#include <hwy/foreach_target.h>  // keep before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "indexcache/kernels/top_candidates.h"

HWY_BEFORE_NAMESPACE();
namespace indexcache::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using RankTag = hn::ScalableTag<std::int32_t>;
using Ranks = hn::Vec<RankTag>;

template <class ScoreTag>
Ranks rank_of(ScoreTag d, hn::Vec<ScoreTag> scores) {
  const RankTag di;
  const auto bits = hn::BitCast(di, hn::Add(scores, hn::Zero(d)));  // -0 + 0 = +0
  const auto flip =
      hn::And(hn::ShiftRight<31>(bits), hn::Set(di, std::numeric_limits<std::int32_t>::max()));
  return hn::IfThenElse(hn::RebindMask(di, hn::IsNaN(scores)),
                        hn::Set(di, std::numeric_limits<std::int32_t>::min()), hn::Xor(bits, flip));
}

// Appends the candidates whose rank exceeds *threshold (all if null); returns how many. Writes up
// to one vector past them.
std::int64_t append_above(const float* scores, std::int64_t count, std::int32_t first,
                          const std::int32_t* threshold, std::int32_t* ranks,
                          std::int32_t* indices) {
  const hn::ScalableTag<float> d;
  const RankTag di;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t appended = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Ranks rank = rank_of(d, hn::LoadU(d, scores + i));
    const auto inside = hn::FirstN(di, static_cast<std::size_t>(std::min(count - i, lanes)));
    const auto kept =
        threshold == nullptr ? inside : hn::And(inside, hn::Gt(rank, hn::Set(di, *threshold)));
    if (hn::AllFalse(di, kept)) continue;
    // Compress and a whole store: compressing stores are microcoded on some CPUs.
    hn::StoreU(hn::Compress(rank, kept), di, ranks + appended);
    hn::StoreU(hn::Compress(hn::Iota(di, first + static_cast<std::int32_t>(i)), kept), di,
               indices + appended);
    appended += static_cast<std::int64_t>(hn::CountTrue(di, kept));
  }
  return appended;
}

// How many of the ranks are at least `bound`.
std::int64_t count_at_least(const std::int32_t* ranks, std::int64_t count, std::int32_t bound) {
  const RankTag di;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(di));
  const Ranks limit = hn::Set(di, bound);
  Ranks sums[4] = {hn::Zero(di), hn::Zero(di), hn::Zero(di), hn::Zero(di)};
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (int j = 0; j < 4; ++j) {  // a true lane is -1
      const auto below = hn::Lt(hn::LoadU(di, ranks + i + j * lanes), limit);
      sums[j] = hn::Sub(sums[j], hn::VecFromMask(di, below));
    }
  }
  const Ranks sum = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  std::int64_t below = hn::GetLane(hn::SumOfLanes(di, sum));
  for (; i < count; ++i) below += ranks[i] < bound;
  return count - below;
}

// The k-th largest of count > k ranks: the greatest value that at least k of them reach, by
// bisection.
std::int32_t kth_largest(const std::int32_t* ranks, std::int64_t count, std::int64_t k) {
  const auto [lowest, highest] = std::minmax_element(ranks, ranks + count);
  std::int64_t low = *lowest, high = *highest;
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (count_at_least(ranks, count, static_cast<std::int32_t>(middle)) >= k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<std::int32_t>(low);
}

// Keeps, in order, the candidates above `bound` and those equal to it that stand before `ties_end`.
void keep_above(std::int32_t* ranks, std::int32_t* indices, std::int64_t count, std::int32_t bound,
                std::int64_t ties_end) {
  const RankTag di;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(di));
  const Ranks limit = hn::Set(di, bound);
  std::int64_t to = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Ranks rank = hn::LoadU(di, ranks + i);
    const Ranks index = hn::LoadU(di, indices + i);
    const auto first_lanes = [&](std::int64_t end) {
      return hn::FirstN(di, static_cast<std::size_t>(std::clamp<std::int64_t>(end - i, 0, lanes)));
    };
    const auto tied = hn::And(hn::Eq(rank, limit), first_lanes(ties_end));
    const auto kept = hn::And(hn::Or(hn::Gt(rank, limit), tied), first_lanes(count));
    // A whole vector is stored, at or below the one just read: it cannot reach unread lanes.
    hn::StoreU(hn::Compress(rank, kept), di, ranks + to);
    hn::StoreU(hn::Compress(index, kept), di, indices + to);
    to += static_cast<std::int64_t>(hn::CountTrue(di, kept));
  }
}

// Keeps the best k of count > k candidates, in their order; returns the rank of the k-th.
std::int32_t keep_best(std::int32_t* ranks, std::int32_t* indices, std::int64_t count,
                       std::int64_t k) {
  const std::int32_t kth = kth_largest(ranks, count, k);
  // Of those equal to the k-th only the first stay: as many as the better ones leave room for. No
  // score has the largest rank (it would be a NaN), so kth + 1 is one.
  std::int64_t room = k - count_at_least(ranks, count, kth + 1);
  std::int64_t ties_end = 0;
  while (room > 0) room -= ranks[ties_end++] == kth;
  keep_above(ranks, indices, count, kth, ties_end);
  return kth;
}

}  // namespace
}  // namespace indexcache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace indexcache {
namespace {

HWY_EXPORT(append_above);
HWY_EXPORT(keep_best);

}  // namespace

void TopCandidates::reserve(std::int64_t capacity) {
  if (capacity <= capacity_) return;
  // Whole vectors are written past the last candidate.
  auto ranks = hwy::AllocateAligned<std::int32_t>(static_cast<std::size_t>(capacity + kSlack));
  auto indices = hwy::AllocateAligned<std::int32_t>(static_cast<std::size_t>(capacity + kSlack));
  std::copy_n(ranks_.get(), size_, ranks.get());
  std::copy_n(indices_.get(), size_, indices.get());
  ranks_ = std::move(ranks);
  indices_ = std::move(indices);
  capacity_ = capacity;
}

void TopCandidates::reset(std::int64_t k) {
  k_ = k;
  size_ = 0;
  has_threshold_ = false;
  reserve(k + std::max(k, 4 * kMaxBatch));
}

void TopCandidates::add(const float* scores, std::int64_t count, std::int32_t first) {
  if (size_ + count > capacity_) shrink();
  size_ += HWY_DYNAMIC_DISPATCH(append_above)(scores, count, first,
                                              has_threshold_ ? &threshold_ : nullptr,
                                              ranks_.get() + size_, indices_.get() + size_);
}

void TopCandidates::append(const TopCandidates& other) {
  reserve(size_ + other.size_);
  std::copy_n(other.ranks_.get(), other.size_, ranks_.get() + size_);
  std::copy_n(other.indices_.get(), other.size_, indices_.get() + size_);
  size_ += other.size_;
}

void TopCandidates::shrink() {
  if (size_ <= k_) return;
  threshold_ = HWY_DYNAMIC_DISPATCH(keep_best)(ranks_.get(), indices_.get(), size_, k_);
  has_threshold_ = true;
  size_ = k_;
}

}  // namespace indexcache
#endif
