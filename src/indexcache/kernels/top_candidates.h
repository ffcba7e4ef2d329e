// The k best of a stream of scores, kept exactly in bounded memory.
//
// Order: higher score first, then lower index; -0 equals +0; NaN ranks below -inf.
//
// Scores arrive with rising indices. A candidate is appended when its score beats a threshold; when
// the buffer is full it shrinks to the best k and the threshold becomes the k-th of them. From then
// on k candidates of lower index score at least the threshold, so a score that only equals it can
// never enter: the comparison is strict and a plateau of equal scores costs nothing. Shrinking
// keeps the order of arrival, so candidates always stand in ascending index order.
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstdint>

namespace indexcache {

class TopCandidates {
 public:
  static constexpr std::int64_t kMaxBatch = 256;
  static constexpr std::int64_t kSlack = 16;

  // For the best k; drops what was there.
  void reset(std::int64_t k);

  // scores[i] belongs to index first + i; count <= kMaxBatch. Indices rise from call to call. Whole
  // vectors are read: up to kSlack values past `count` must be readable.
  void add(const float* scores, std::int64_t count, std::int32_t first);

  // Appends another list whose indices all lie above this one's.
  void append(const TopCandidates& other);

  // Shrinks to the best k (or fewer, if fewer arrived).
  void shrink();

  std::int64_t size() const { return size_; }
  const std::int32_t* indices() const { return indices_.get(); }  // ascending

 private:
  void reserve(std::int64_t capacity);

  std::int64_t k_ = 0, size_ = 0, capacity_ = 0;
  bool has_threshold_ = false;
  std::int32_t threshold_ = 0;
  // The score's bits mapped to a signed integer of the same order.
  hwy::AlignedFreeUniquePtr<std::int32_t[]> ranks_;
  hwy::AlignedFreeUniquePtr<std::int32_t[]> indices_;
};

}  // namespace indexcache
