#include "indexcache/eval/speed.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "indexcache/base/error.h"
#include "indexcache/base/span.h"
#include "indexcache/eval/device_spans.h"

namespace indexcache {
namespace {

constexpr std::int64_t kWarmUpTokens = 512;

// Times what it is given, device work included, and adds the parts it falls into.
class Stopwatch {
 public:
  explicit Stopwatch(bool parts) : parts_(parts) { TimedSpan::enable(parts); }
  ~Stopwatch() { TimedSpan::enable(false); }

  template <typename Work>
  double time(const Work& work, PartSeconds& parts) {
    TimedSpan::take();
    const auto start = std::chrono::steady_clock::now();
    work();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (parts_) {
      double other = seconds;
      for (const auto& [name, part] : TimedSpan::take()) {
        parts[name] += part;
        other -= part;
      }
      parts["other"] += other;
    }
    return seconds;
  }

 private:
  bool parts_;
};

class Runner {
 public:
  Runner(const Model& model, const std::vector<std::int32_t>& tokens, const SpeedOptions& options)
      : model_(&model), options_(&options), length_(capacity(options)) {
    std::vector<std::int64_t> ids(static_cast<std::size_t>(length_));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = tokens[i % tokens.size()];
    tokens_ = at::tensor(ids).to(model.options().device);
  }

  static std::int64_t capacity(const SpeedOptions& options) {
    return options.contexts.back() + options.decode_tokens + 1;
  }

  void warm_up(const Pattern& pattern) const {
    SequenceCache cache = model_->make_cache(pattern, length_);
    step(cache, std::min(kWarmUpTokens, options_->contexts.front()));
    step(cache, 1);
  }

  // One run; where `parts` are wanted they are added to the points', else its times are.
  enum class Wanted { kTimes, kParts, kBoth };
  void run(PatternSpeed& speed, Wanted wanted,
           const std::function<void(std::int64_t)>& on_tokens) const {
    Stopwatch stopwatch(wanted != Wanted::kTimes);
    SequenceCache cache = model_->make_cache(speed.pattern, length_);
    double prefill = 0;
    PartSeconds prefill_parts;
    for (auto& point : speed.points) {
      const std::int64_t stretch = point.context - cache.length();
      prefill += stopwatch.time([&] { step(cache, stretch); }, prefill_parts);
      PartSeconds decode_parts, untimed;
      stopwatch.time([&] { step(cache, 1); }, untimed);
      const double decode = stopwatch.time(
          [&] {
            for (std::int64_t i = 0; i < options_->decode_tokens; ++i) step(cache, 1);
          },
          decode_parts);
      cache.truncate(point.context);
      const auto steps = static_cast<double>(options_->decode_tokens);
      if (wanted != Wanted::kParts) {
        point.prefill.push_back(prefill);
        point.decode.push_back(decode / steps);
      }
      for (const auto& [name, seconds] : prefill_parts) point.prefill_parts[name] += seconds;
      for (const auto& [name, seconds] : decode_parts) point.decode_parts[name] += seconds / steps;
      on_tokens(stretch + options_->decode_tokens + 1);
    }
  }

 private:
  // The next `count` tokens and the choice of the one after them, as generation does it.
  void step(SequenceCache& cache, std::int64_t count) const {
    const auto hidden =
        model_->forward(tokens_.narrow(0, cache.length(), count), cache, options_->chunk);
    model_->logits(hidden.narrow(0, count - 1, 1)).argmax().cpu();
  }

  const Model* model_;
  const SpeedOptions* options_;
  std::int64_t length_;
  at::Tensor tokens_;
};

void check(const SpeedOptions& options, const std::vector<std::int32_t>& tokens,
           const Model& model) {
  const auto& contexts = options.contexts;
  if (contexts.empty() || contexts.front() < 1 ||
      !std::is_sorted(contexts.begin(), contexts.end()) ||
      std::adjacent_find(contexts.begin(), contexts.end()) != contexts.end()) {
    throw expectation_error("contexts", "positive lengths in ascending order", "others");
  }
  if (options.repeats < 1 || options.decode_tokens < 1 || options.chunk < 1) {
    throw expectation_error(
        "repeats, decode tokens and chunk", "at least 1 each",
        fmt::format("{}, {} and {}", options.repeats, options.decode_tokens, options.chunk));
  }
  if (tokens.empty()) throw expectation_error("tokens to run", "at least one", "none");
  for (const auto token : tokens) {
    if (token < 0 || token >= model.config().vocab_size) {
      throw expectation_error("tokens to run",
                              fmt::format("ids below {}", model.config().vocab_size),
                              std::to_string(token));
    }
  }
}

}  // namespace

std::vector<PatternSpeed> measure_speed(
    const Model& model, const std::vector<NamedPattern>& patterns,
    const std::vector<std::int32_t>& tokens, const SpeedOptions& options,
    const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  check(options, tokens, model);
  // What does not fit is said before anything of its size is made.
  for (const auto& [name, pattern] : patterns) model.make_cache(pattern, Runner::capacity(options));
  const Runner runner(model, tokens, options);
  const DeviceSpans spans(model.options().device);
  std::vector<PatternSpeed> speeds;
  for (const auto& [name, pattern] : patterns) {
    PatternSpeed& speed = speeds.emplace_back(PatternSpeed{name, pattern, {}});
    const CacheBytes token = cache_bytes_per_token(model.cache_shape(), pattern);
    for (const auto context : options.contexts) {
      SpeedPoint& point = speed.points.emplace_back();
      point.context = context;
      point.cache = {.latents = token.latents * context, .index_keys = token.index_keys * context};
    }
    runner.warm_up(pattern);
  }

  // Asking the clock at every part makes a GPU wait; a CPU does not care.
  const bool parts_apart = !model.options().device.is_cpu();
  const int part_runs = parts_apart ? 1 : options.repeats;
  const std::int64_t a_run =
      options.contexts.back() +
      static_cast<std::int64_t>(options.contexts.size()) * (options.decode_tokens + 1);
  const std::int64_t total = a_run * static_cast<std::int64_t>(patterns.size()) *
                             (options.repeats + (parts_apart ? 1 : 0));
  std::int64_t done = 0;
  const auto advance = [&](std::int64_t count) {
    done += count;
    if (on_progress) on_progress(done, total);
  };
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (auto& speed : speeds) {
      runner.run(speed, parts_apart ? Runner::Wanted::kTimes : Runner::Wanted::kBoth, advance);
    }
  }
  if (parts_apart) {
    for (auto& speed : speeds) runner.run(speed, Runner::Wanted::kParts, advance);
  }
  for (auto& speed : speeds) {
    for (auto& point : speed.points) {
      for (auto& [name, seconds] : point.prefill_parts) seconds /= part_runs;
      for (auto& [name, seconds] : point.decode_parts) seconds /= part_runs;
    }
  }
  return speeds;
}

}  // namespace indexcache
