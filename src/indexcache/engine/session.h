// Session: one sequence that grows under one pattern, and generation from it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "indexcache/cache/sequence_cache.h"
#include "indexcache/engine/sampler.h"
#include "indexcache/model/model.h"
#include "indexcache/policy/pattern.h"

namespace indexcache {

class Session {
 public:
  // Holds up to `capacity` tokens. The model must outlive it.
  Session(const Model& model, const Pattern& pattern, std::int64_t capacity);

  // Runs the tokens (at least one) through the model, after those of earlier calls, and returns the
  // logits of the token that follows: [vocab] fp32 on the CPU. Throws InputError naming the token
  // if one is not of the model's vocabulary, or if they do not fit.
  std::vector<float> append(std::span<const std::int32_t> tokens);

  std::int64_t length() const { return cache_.length(); }
  std::int64_t bytes() const { return cache_.bytes(); }  // of its cache

 private:
  const Model* model_;
  SequenceCache cache_;
};

struct GenerateOptions {
  std::int64_t max_tokens = 256;
  SamplingOptions sampling = {};
  std::vector<std::int32_t> stop_tokens = {};  // end the generation and are no part of it
};

enum class StopReason { kMaxTokens, kStopToken };

struct Generation {
  std::vector<std::int32_t> tokens;
  StopReason reason = StopReason::kMaxTokens;
  double prefill_seconds = 0, decode_seconds = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t decode_steps = 0;  // forward passes after the prompt's
};

// Continues the session with `prompt` and then with what the model says. on_token sees each token
// as soon as it is known.
Generation generate(Session& session, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options,
                    const std::function<void(std::int32_t)>& on_token = {});

}  // namespace indexcache
