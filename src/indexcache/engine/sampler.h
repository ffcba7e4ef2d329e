// Sampler: the next token from the logits.
#pragma once

#include <cstdint>
#include <random>
#include <span>

namespace indexcache {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy, the largest logit, ties to the lower token
  int top_k = 0;             // only the k most likely tokens; 0: all
  double top_p = 1.0;        // only the fewest most likely tokens whose probabilities reach top_p
  std::uint64_t seed = 1;
};

// probability ~ exp(logit / temperature), cut first by top_k, then by top_p of what is left, ties
// to the lower token. The same seed and logits give the same tokens on every platform.
class Sampler {
 public:
  // Throws InputError unless temperature >= 0, top_k >= 0 and 0 < top_p <= 1.
  explicit Sampler(const SamplingOptions& options);

  // logits [vocab]. Throws InputError if they are not all numbers (a broken checkpoint).
  std::int32_t sample(std::span<const float> logits);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace indexcache
