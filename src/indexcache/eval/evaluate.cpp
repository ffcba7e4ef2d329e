#include "indexcache/eval/evaluate.h"

#include <ATen/ops/argmax.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

constexpr std::int64_t kFirstBucket = 128;

at::Tensor as_tensor(std::span<const std::int32_t> tokens) {
  return at::tensor(std::vector<std::int64_t>(tokens.begin(), tokens.end()));
}

// Hidden states of all tokens but the last.
at::Tensor run(const Model& model, const Pattern& pattern,
               const std::vector<std::int32_t>& tokens) {
  INDEXCACHE_ASSERT(tokens.size() >= 2);
  const auto vocabulary = model.config().vocab_size;
  for (const auto token : tokens) {
    if (token < 0 || token >= vocabulary) {
      throw expectation_error("text", fmt::format("token ids below the model's {}", vocabulary),
                              std::to_string(token));
    }
  }
  const auto length = static_cast<std::int64_t>(tokens.size()) - 1;
  SequenceCache cache = model.make_cache(pattern, length);
  return model.forward(as_tensor(std::span(tokens).first(tokens.size() - 1)), cache);
}

// Losses [n] of these positions, all finite: NaN would spread into means without a word.
void check_finite(const at::Tensor& losses, const std::vector<std::int32_t>& positions,
                  const Pattern& pattern) {
  const auto* values = losses.const_data_ptr<float>();
  for (std::size_t i = 0; i < positions.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw expectation_error(
        fmt::format("pattern {}: the loss at position {}", pattern.str(), positions[i]),
        "a finite number",
        fmt::format("{} (the weights are not finite, or the dtype overflows)", values[i]));
  }
}

std::vector<double> sum_by_bucket(const std::vector<float>& losses) {
  const auto length = static_cast<std::int64_t>(losses.size());
  std::vector<double> sums;
  for (const auto& bucket : position_buckets(length)) {
    sums.push_back(
        std::accumulate(losses.begin() + bucket.begin, losses.begin() + bucket.end, 0.0));
  }
  return sums;
}

std::int64_t num_tokens(const EvalInputs& inputs) {
  std::int64_t total = 0;
  for (const auto& window : inputs.windows) {
    total += static_cast<std::int64_t>(window.tokens.size()) - 1;
  }
  for (const auto& set : inputs.tasks) {
    total += static_cast<std::int64_t>(set.prompts.size()) * set.options.context;
  }
  return total;
}

}  // namespace

std::vector<TaskSet> make_task_sets(const std::vector<std::int32_t>& text,
                                    const Tokenizer& tokenizer, const TaskOptions& options) {
  const RetrievalGenerator generator(tokenizer);
  std::vector<TaskSet> sets;
  for (const auto context : options.contexts) {
    for (const auto task : options.tasks) {
      TaskSet& set = sets.emplace_back();
      set.options.task = task;
      set.options.context = context;
      set.options.num_keys = task == RetrievalTask::kSingleNeedle ? 1
                             : task == RetrievalTask::kVariableTracking
                                 ? std::max(options.num_keys / 2, 1)
                                 : options.num_keys;
      // Prompts of one task and context do not depend on which others are asked for.
      std::seed_seq seeds{static_cast<std::uint32_t>(options.seed),
                          static_cast<std::uint32_t>(options.seed >> 32),
                          static_cast<std::uint32_t>(context), static_cast<std::uint32_t>(task)};
      std::mt19937_64 random(seeds);
      const auto window = std::min(context, static_cast<std::int64_t>(text.size()));
      for (int i = 0; i < options.num_prompts; ++i) {
        set.prompts.push_back(
            generator.make(draw_window(text, window, random), set.options, random));
      }
    }
  }
  return sets;
}

std::vector<PositionBucket> position_buckets(std::int64_t context) {
  std::vector<PositionBucket> buckets;
  std::int64_t begin = 0, end = kFirstBucket;
  while (begin < context) {
    buckets.push_back({begin, std::min(end, context)});
    begin = end;
    end *= 2;
  }
  return buckets;
}

std::vector<double> PatternScores::window_nll() const {
  std::vector<double> sums;
  for (const auto& buckets : bucket_nll) {
    sums.push_back(std::accumulate(buckets.begin(), buckets.end(), 0.0));
  }
  return sums;
}

std::vector<float> score_tokens(const Model& model, const Pattern& pattern,
                                const std::vector<std::int32_t>& tokens) {
  const auto hidden = run(model, pattern, tokens);
  const auto losses =
      model.token_losses(hidden, as_tensor(std::span(tokens).subspan(1))).contiguous();
  std::vector<std::int32_t> positions(static_cast<std::size_t>(losses.numel()));
  std::iota(positions.begin(), positions.end(), 0);
  check_finite(losses, positions, pattern);
  const auto* values = losses.const_data_ptr<float>();
  return {values, values + losses.numel()};
}

PromptScore score_prompt(const Model& model, const Pattern& pattern,
                         const RetrievalPrompt& prompt) {
  const auto positions = prompt.answer_positions();
  std::vector<std::int32_t> targets;
  for (const auto position : positions) {
    targets.push_back(prompt.tokens[static_cast<std::size_t>(position) + 1]);
  }
  auto hidden = run(model, pattern, prompt.tokens);
  hidden = hidden.index_select(0, as_tensor(positions).to(hidden.device()));
  const auto expected = as_tensor(targets);
  const auto right = model.logits(hidden).argmax(-1).cpu().eq(expected).contiguous();
  const auto* token_right = right.const_data_ptr<bool>();

  PromptScore score;
  for (const auto& answer : prompt.answers) {
    if (std::all_of(token_right, token_right + answer.size(), [](bool yes) { return yes; })) {
      score.right += 1.0 / static_cast<double>(prompt.answers.size());
    }
    token_right += answer.size();
  }
  const auto losses = model.token_losses(hidden, expected).contiguous();
  check_finite(losses, positions, pattern);
  const auto* values = losses.const_data_ptr<float>();
  score.loss =
      std::accumulate(values, values + losses.numel(), 0.0) / static_cast<double>(losses.numel());
  return score;
}

std::vector<PatternScores> evaluate(
    const Model& model, const std::vector<Pattern>& patterns, const EvalInputs& inputs,
    const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  std::map<Pattern, PatternScores> scores;
  for (const auto& pattern : patterns) {
    model.check_pattern(pattern);
    PatternScores empty{.pattern = pattern, .bucket_nll = {}, .tasks = {}};
    empty.tasks.resize(inputs.tasks.size());
    scores.emplace(pattern, std::move(empty));
  }
  const std::int64_t total = num_tokens(inputs) * static_cast<std::int64_t>(scores.size());
  std::int64_t done = 0;
  const auto advance = [&](std::int64_t tokens) {
    done += tokens;
    if (on_progress) on_progress(done, total);
  };

  for (const auto& window : inputs.windows) {
    for (auto& [pattern, score] : scores) {
      score.bucket_nll.push_back(sum_by_bucket(score_tokens(model, pattern, window.tokens)));
      advance(static_cast<std::int64_t>(window.tokens.size()) - 1);
    }
  }
  for (std::size_t set = 0; set < inputs.tasks.size(); ++set) {
    for (const auto& prompt : inputs.tasks[set].prompts) {
      for (auto& [pattern, score] : scores) {
        score.tasks[set].push_back(score_prompt(model, pattern, prompt));
        advance(inputs.tasks[set].options.context);
      }
    }
  }
  std::vector<PatternScores> result;
  for (const auto& pattern : patterns) result.push_back(scores.at(pattern));
  return result;
}

}  // namespace indexcache
