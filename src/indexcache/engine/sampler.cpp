#include "indexcache/engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/base/random.h"

namespace indexcache {

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    throw expectation_error("temperature", "a finite number from 0",
                            fmt::format("{}", options.temperature));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw expectation_error("top_p", "a number above 0, at most 1",
                            fmt::format("{}", options.top_p));
  }
  if (options.top_k < 0) {
    throw expectation_error("top_k", "a count, or 0 for all", std::to_string(options.top_k));
  }
}

std::int32_t Sampler::sample(std::span<const float> logits) {
  INDEXCACHE_ASSERT(!logits.empty());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!std::isfinite(logits[i])) {
      throw expectation_error("logits", "finite numbers",
                              fmt::format("{} for token {}", logits[i], i));
    }
  }
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options_.temperature == 0) return static_cast<std::int32_t>(best - logits.begin());

  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    const float left = logits[static_cast<std::size_t>(a)];
    const float right = logits[static_cast<std::size_t>(b)];
    return left != right ? left > right : a < b;
  };
  const auto all = static_cast<std::ptrdiff_t>(order.size());
  const auto kept = options_.top_k > 0 ? std::min<std::ptrdiff_t>(options_.top_k, all) : all;
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), likelier);
  order.resize(static_cast<std::size_t>(kept));
  std::vector<double> cumulative(order.size());
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double logit = logits[static_cast<std::size_t>(order[i])];
    total += std::exp((logit - static_cast<double>(*best)) / options_.temperature);
    cumulative[i] = total;
  }
  const auto reached =
      std::lower_bound(cumulative.begin(), cumulative.end(), options_.top_p * total);
  const auto last = std::min(reached, cumulative.end() - 1);
  const double drawn = draw_unit(random_) * *last;
  const auto chosen = std::upper_bound(cumulative.begin(), last, drawn);
  return order[static_cast<std::size_t>(chosen - cumulative.begin())];
}

}  // namespace indexcache
