// TopCandidates against a stable sort of everything that arrived.
#include "indexcache/kernels/top_candidates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "support/cpu_targets.h"

namespace indexcache {
namespace {

using testing::for_each_cpu_target;

std::vector<std::int32_t> best(const std::vector<float>& scores, std::int64_t k,
                               std::int32_t first) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (std::isnan(scores[b])) return !std::isnan(scores[a]);
    return scores[a] > scores[b];
  });
  order.resize(std::min<std::size_t>(order.size(), k));
  std::sort(order.begin(), order.end());
  for (std::int32_t& index : order) index += first;
  return order;
}

void feed(TopCandidates& candidates, const std::vector<float>& scores, std::int32_t first,
          std::mt19937& random) {
  const auto total = static_cast<std::int64_t>(scores.size());
  for (std::int64_t at = 0; at < total;) {
    const std::int64_t batch = std::min<std::int64_t>(
        total - at, 1 + static_cast<std::int64_t>(random() % TopCandidates::kMaxBatch));
    // What stands past a batch is read but must not enter.
    std::vector<float> buffer(batch + TopCandidates::kSlack, 1e30f);
    std::copy_n(scores.begin() + at, batch, buffer.begin());
    candidates.add(buffer.data(), batch, static_cast<std::int32_t>(first + at));
    at += batch;
  }
}

std::vector<std::int32_t> kept(const TopCandidates& candidates) {
  return {candidates.indices(), candidates.indices() + candidates.size()};
}

// Values from few to many distinct ones, with every special value among them.
std::vector<float> random_scores(std::size_t count, std::mt19937& random) {
  const unsigned distinct = 1u << (random() % 12);
  const float specials[] = {
      std::numeric_limits<float>::infinity(),  -std::numeric_limits<float>::infinity(),
      std::numeric_limits<float>::quiet_NaN(), -0.0f,
      std::numeric_limits<float>::max(),       std::numeric_limits<float>::denorm_min()};
  const bool special = random() % 2 == 0;
  std::vector<float> scores(count);
  for (float& score : scores) {
    score = static_cast<float>(random() % distinct) - static_cast<float>(distinct / 2);
    if (special && random() % 8 == 0) score = specials[random() % 6];
  }
  return scores;
}

TEST(TopCandidates, KeepsTheBestOfAnyStream) {
  for_each_cpu_target([] {
    std::mt19937 random(31);
    TopCandidates candidates;  // reused, as a worker does
    for (int round = 0; round < 60; ++round) {
      const std::int64_t k = 1 + static_cast<std::int64_t>(random() % 300);
      const std::vector<float> scores = random_scores(random() % 6000, random);
      const auto first = static_cast<std::int32_t>(random() % 1000);
      candidates.reset(k);
      feed(candidates, scores, first, random);
      candidates.shrink();
      ASSERT_EQ(kept(candidates), best(scores, k, first)) << "round " << round;
    }
  });
}

TEST(TopCandidates, PiecesMergeToTheWhole) {
  for_each_cpu_target([] {
    std::mt19937 random(32);
    for (int round = 0; round < 30; ++round) {
      const std::int64_t k = 1 + static_cast<std::int64_t>(random() % 200);
      const std::vector<float> scores = random_scores(3000, random);
      TopCandidates whole;
      whole.reset(k);
      for (std::size_t at = 0; at < scores.size(); at += 700) {
        const std::size_t end = std::min(at + 700, scores.size());
        TopCandidates piece;
        piece.reset(k);
        feed(piece, {scores.begin() + at, scores.begin() + end}, static_cast<std::int32_t>(at),
             random);
        piece.shrink();
        whole.append(piece);
      }
      whole.shrink();
      ASSERT_EQ(kept(whole), best(scores, k, 0)) << "round " << round;
    }
  });
}

// A plateau of equal scores enters until k stand, then not once more.
TEST(TopCandidates, APlateauCostsNothingOnceFull) {
  for_each_cpu_target([] {
    TopCandidates candidates;
    candidates.reset(10);
    const std::vector<float> zeros(TopCandidates::kMaxBatch + TopCandidates::kSlack, 0.0f);
    std::int32_t first = 0;
    std::int64_t largest = 0;
    for (int batch = 0; batch < 100; ++batch, first += TopCandidates::kMaxBatch) {
      candidates.add(zeros.data(), TopCandidates::kMaxBatch, first);
      if (batch > 10) largest = std::max(largest, candidates.size());
    }
    EXPECT_EQ(largest, 10);
    std::vector<std::int32_t> expected(10);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(kept(candidates), expected);
  });
}

}  // namespace
}  // namespace indexcache
