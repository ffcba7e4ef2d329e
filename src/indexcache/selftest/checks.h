// What a result is held to: its reference, exactly or within a bound that is derived from the
// inputs.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace indexcache {

struct Verdict {
  double worst = 0;          // largest error as a share of its bound; 0 for exact comparisons
  std::string failure = {};  // what was expected and found, and where; empty = passed
};

// The first failure and the largest error of two.
Verdict both(Verdict a, const Verdict& b);

// Integers, equal in every element.
Verdict check_equal(const at::Tensor& found, const at::Tensor& expected);

// Values [...] against `expected` (double), `bound` (double, >= 0) for each element. Where the
// expected value is not finite the found one must be the same; NaN is never right elsewhere.
Verdict check_values(const char* name, const at::Tensor& found, const at::Tensor& expected,
                     const at::Tensor& bound);

// Top-k sets [M, k] of the keys in [start, end) against scores [M, N] in double, known up to `bound`
// [M, N]: ascending, unique, in range, as many as there are, then -1; and every key left out scores
// no more than every key kept, up to the bounds of the two.
Verdict check_selection(const at::Tensor& sets, const at::Tensor& start, const at::Tensor& end,
                        const at::Tensor& scores, const at::Tensor& bound);

// A second run gives the same bits, NaN included.
Verdict check_same_bits(const at::Tensor& first, const at::Tensor& second);

}  // namespace indexcache
