#include "indexcache/engine/session.h"

#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Session::Session(const Model& model, const Pattern& pattern, std::int64_t capacity)
    : model_(&model), cache_(model.make_cache(pattern, capacity)) {}

std::vector<float> Session::append(std::span<const std::int32_t> tokens) {
  if (tokens.empty()) throw expectation_error("prompt", "at least one token", "none");
  const auto vocabulary = model_->config().vocab_size;
  for (const auto token : tokens) {
    if (token < 0 || token >= vocabulary) {
      throw expectation_error("prompt", fmt::format("token ids from 0 to {}", vocabulary - 1),
                              std::to_string(token));
    }
  }
  const std::vector<std::int64_t> ids(tokens.begin(), tokens.end());
  const auto hidden = model_->forward(at::tensor(ids), cache_);
  const auto logits = model_->logits(hidden.narrow(0, hidden.size(0) - 1, 1)).cpu().contiguous();
  const auto* values = logits.const_data_ptr<float>();
  return {values, values + logits.numel()};
}

Generation generate(Session& session, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options,
                    const std::function<void(std::int32_t)>& on_token) {
  if (options.max_tokens < 1) {
    throw expectation_error("max_tokens", "at least 1", std::to_string(options.max_tokens));
  }
  Sampler sampler(options.sampling);
  Generation result;
  result.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  auto start = Clock::now();
  std::vector<float> logits = session.append(prompt);
  result.prefill_seconds = seconds_since(start);

  start = Clock::now();
  while (true) {
    const std::int32_t token = sampler.sample(logits);
    const auto& stops = options.stop_tokens;
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      result.reason = StopReason::kStopToken;
      break;
    }
    result.tokens.push_back(token);
    if (on_token) on_token(token);
    if (static_cast<std::int64_t>(result.tokens.size()) == options.max_tokens) break;
    logits = session.append(std::span(&token, 1));
    ++result.decode_steps;
  }
  result.decode_seconds = seconds_since(start);
  return result;
}

}  // namespace indexcache
