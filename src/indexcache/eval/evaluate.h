// Language modelling and retrieval of a model under several patterns, on the same inputs.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "indexcache/data/retrieval.h"
#include "indexcache/eval/text_windows.h"
#include "indexcache/model/model.h"
#include "indexcache/policy/pattern.h"

namespace indexcache {

struct TaskSet {
  RetrievalOptions options;
  std::vector<RetrievalPrompt> prompts;
};

struct EvalInputs {
  std::int64_t context = 0;  // of the windows
  std::vector<TextWindow> windows;
  std::vector<TaskSet> tasks;
};

struct TaskOptions {
  std::vector<RetrievalTask> tasks = all_retrieval_tasks();
  std::vector<std::int64_t> contexts = {};
  int num_prompts = 50;  // a task and context
  int num_keys = 4;      // of the multi-key needle; variable tracking has half as many chains
  std::uint64_t seed = 1;
};

// Every task at every context, hidden in windows drawn from `text`.
std::vector<TaskSet> make_task_sets(const std::vector<std::int32_t>& text,
                                    const Tokenizer& tokenizer, const TaskOptions& options);

// Positions of a window by powers of two: bucket 0 holds 0 .. 127, bucket b the positions
// 64 * 2^b .. 128 * 2^b - 1.
struct PositionBucket {
  std::int64_t begin = 0, end = 0;
};
std::vector<PositionBucket> position_buckets(std::int64_t context);

struct PromptScore {
  double right = 0;  // share of its questions answered right: every answer token the argmax
  double loss = 0;   // mean -log p of the answer tokens
};

struct PatternScores {
  Pattern pattern;
  std::vector<std::vector<double>> bucket_nll;  // [windows][buckets of its tokens], sums in nats
  std::vector<std::vector<PromptScore>> tasks;  // [task sets][prompts]

  std::vector<double> window_nll() const;
};

// -log p of tokens[t + 1] at every position t: [tokens - 1]. Both throw InputError naming pattern
// and position where a loss is not finite.
std::vector<float> score_tokens(const Model& model, const Pattern& pattern,
                                const std::vector<std::int32_t>& tokens);
PromptScore score_prompt(const Model& model, const Pattern& pattern, const RetrievalPrompt& prompt);

// Every pattern on every input: all patterns on one input before the next. A pattern given twice is
// run once. on_progress(tokens done, tokens in all).
std::vector<PatternScores> evaluate(
    const Model& model, const std::vector<Pattern>& patterns, const EvalInputs& inputs,
    const std::function<void(std::int64_t, std::int64_t)>& on_progress = {});

}  // namespace indexcache
