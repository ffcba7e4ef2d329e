// Estimates over items that differ in size, and differences on the same items.
#pragma once

#include <span>

namespace indexcache {

struct Estimate {
  double value = 0;
  double standard_error = 0;  // NaN for fewer than two items
};

// R = sum a_i / sum w_i with the ratio estimator's standard error,
//   sqrt(n / (n - 1) * sum (a_i - R w_i)^2) / sum w_i;
// with equal weights the mean and its usual standard error. Both spans hold at least one item, and
// the weights' sum is positive.
Estimate ratio(std::span<const double> amounts, std::span<const double> weights);

// The same of a_i - b_i: what the items have in common does not count into the error.
Estimate ratio_difference(std::span<const double> amounts, std::span<const double> baseline,
                          std::span<const double> weights);

}  // namespace indexcache
