#include "indexcache/selftest/checks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

// Element `i` of a contiguous tensor as an index: "[3, 0, 7]".
std::string position(at::IntArrayRef sizes, std::int64_t i) {
  std::vector<std::int64_t> index(sizes.size());
  for (std::size_t d = sizes.size(); d-- > 0; i /= sizes[d]) index[d] = i % sizes[d];
  return fmt::format("[{}]", fmt::join(index, ", "));
}

std::string check_row(const std::int32_t* row, std::int64_t top_k, std::int64_t available,
                      const double* score, const double* bound) {
  const auto kept = std::min(top_k, available);
  std::vector<bool> chosen(static_cast<std::size_t>(available));
  for (std::int64_t i = 0; i < top_k; ++i) {
    if (i >= kept) {
      if (row[i] != -1) return fmt::format("entry {}: expected -1, found {}", i, row[i]);
      continue;
    }
    if (row[i] < 0 || row[i] >= available || (i > 0 && row[i] <= row[i - 1])) {
      return fmt::format("entry {}: expected ascending indices below {}, found {}", i, available,
                         row[i]);
    }
    chosen[static_cast<std::size_t>(row[i])] = true;
  }
  double worst_kept = std::numeric_limits<double>::infinity();
  double best_dropped = -worst_kept;
  for (std::int64_t s = 0; s < available; ++s) {
    if (chosen[static_cast<std::size_t>(s)]) {
      worst_kept = std::min(worst_kept, score[s] + bound[s]);
    } else {
      best_dropped = std::max(best_dropped, score[s] - bound[s]);
    }
  }
  if (best_dropped > worst_kept) {
    return fmt::format("a key of score {} was left out, one of {} kept", best_dropped, worst_kept);
  }
  return "";
}

}  // namespace

Verdict both(Verdict a, const Verdict& b) {
  a.worst = std::max(a.worst, b.worst);
  if (a.failure.empty()) a.failure = b.failure;
  return a;
}

Verdict check_equal(const at::Tensor& found, const at::Tensor& expected) {
  INDEXCACHE_ASSERT(found.sizes() == expected.sizes());
  const auto f = found.to(at::kLong).contiguous(), e = expected.to(at::kLong).contiguous();
  const auto *values = f.const_data_ptr<std::int64_t>(), *right = e.const_data_ptr<std::int64_t>();
  const auto [wrong, truth] = std::mismatch(values, values + f.numel(), right);
  if (wrong == values + f.numel()) return {};
  return {.failure = fmt::format("at {}: expected {}, found {}",
                                 position(f.sizes(), wrong - values), *truth, *wrong)};
}

Verdict check_values(const char* name, const at::Tensor& found, const at::Tensor& expected,
                     const at::Tensor& bound) {
  INDEXCACHE_ASSERT(found.sizes() == expected.sizes() && bound.sizes() == expected.sizes());
  const auto f = found.to(at::kDouble).contiguous(), e = expected.contiguous(),
             b = bound.contiguous();
  const auto *values = f.const_data_ptr<double>(), *right = e.const_data_ptr<double>(),
             *bounds = b.const_data_ptr<double>();
  Verdict verdict;
  std::int64_t worst_at = -1;
  for (std::int64_t i = 0; i < f.numel(); ++i) {
    double share = 0;
    if (!std::isfinite(right[i])) {
      const bool same = std::isnan(right[i]) ? std::isnan(values[i]) : values[i] == right[i];
      share = same ? 0 : std::numeric_limits<double>::infinity();
    } else if (values[i] != right[i]) {
      share = std::abs(values[i] - right[i]) / bounds[i];  // a bound of 0 makes this infinite
      if (std::isnan(share)) share = std::numeric_limits<double>::infinity();
    }
    if (share > verdict.worst) {
      verdict.worst = share;
      worst_at = i;
    }
  }
  if (verdict.worst > 1) {
    verdict.failure = fmt::format("{} at {}: expected {:.6g} within {:.2g}, found {:.6g}", name,
                                  position(f.sizes(), worst_at), right[worst_at], bounds[worst_at],
                                  values[worst_at]);
  }
  return verdict;
}

Verdict check_selection(const at::Tensor& sets, const at::Tensor& start, const at::Tensor& end,
                        const at::Tensor& scores, const at::Tensor& bound) {
  const auto row = sets.contiguous();
  const auto score = scores.contiguous(), error = bound.contiguous();
  const auto num_keys = score.size(1);
  for (std::int64_t t = 0; t < row.size(0); ++t) {
    const auto first = start[t].item<std::int64_t>();
    const auto available = std::max<std::int64_t>(end[t].item<std::int64_t>() - first, 0);
    const auto failure =
        check_row(row.const_data_ptr<std::int32_t>() + t * row.size(1), row.size(1), available,
                  score.const_data_ptr<double>() + t * num_keys + first,
                  error.const_data_ptr<double>() + t * num_keys + first);
    if (!failure.empty()) return {.failure = fmt::format("query {}: {}", t, failure)};
  }
  return {};
}

Verdict check_same_bits(const at::Tensor& first, const at::Tensor& second) {
  const auto a = first.cpu().contiguous(), b = second.cpu().contiguous();
  if (a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
      std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0) {
    return {};
  }
  return {.failure = "a second run gave another result"};
}

}  // namespace indexcache
