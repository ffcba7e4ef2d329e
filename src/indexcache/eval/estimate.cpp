#include "indexcache/eval/estimate.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "indexcache/base/error.h"

namespace indexcache {

Estimate ratio(std::span<const double> amounts, std::span<const double> weights) {
  INDEXCACHE_ASSERT(amounts.size() == weights.size() && !amounts.empty());
  const double total_weight = std::accumulate(weights.begin(), weights.end(), 0.0);
  INDEXCACHE_ASSERT(total_weight > 0);
  Estimate result;
  result.value = std::accumulate(amounts.begin(), amounts.end(), 0.0) / total_weight;
  double squares = 0;
  for (std::size_t i = 0; i < amounts.size(); ++i) {
    const double residual = amounts[i] - result.value * weights[i];
    squares += residual * residual;
  }
  const auto count = static_cast<double>(amounts.size());
  result.standard_error = amounts.size() < 2
                              ? std::numeric_limits<double>::quiet_NaN()
                              : std::sqrt(count / (count - 1) * squares) / total_weight;
  return result;
}

Estimate ratio_difference(std::span<const double> amounts, std::span<const double> baseline,
                          std::span<const double> weights) {
  INDEXCACHE_ASSERT(amounts.size() == baseline.size());
  std::vector<double> differences(amounts.begin(), amounts.end());
  for (std::size_t i = 0; i < differences.size(); ++i) differences[i] -= baseline[i];
  return ratio(differences, weights);
}

}  // namespace indexcache
