#include "indexcache/calibrate/trie_evaluator.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "indexcache/base/error.h"
#include "indexcache/base/machine.h"

namespace indexcache {

struct TrieEvaluator::State {
  at::Tensor hidden;                     // [T, hidden]
  std::map<int, at::Tensor> index_sets;  // by Full layer
};

struct TrieEvaluator::Trunk {
  Pattern pattern = Pattern::full(1);
  std::optional<State> embedded;
  std::vector<std::optional<State>> after;  // by layer
};

namespace {

std::int64_t longest(const std::vector<Sequence>& sequences) {
  std::size_t tokens = 0;
  for (const Sequence& sequence : sequences) tokens = std::max(tokens, sequence.tokens.size());
  return static_cast<std::int64_t>(tokens);
}

std::int64_t together(const std::vector<Sequence>& sequences) {
  std::size_t tokens = 0;
  for (const Sequence& sequence : sequences) tokens += sequence.tokens.size();
  return static_cast<std::int64_t>(tokens);
}

// Bytes of the trunks of all sequences, `tokens` together, that carry every `stride`-th state: their
// hidden states, and the index sets of all layers at most.
std::int64_t carried_bytes(const LayerRunner& runner, std::int64_t tokens, int stride) {
  if (stride == 0) return 0;
  const std::int64_t states = (runner.num_layers() - 1) / stride;
  return tokens * (states * runner.hidden_bytes_per_token() +
                   runner.num_layers() * runner.index_set_bytes_per_token());
}

// The densest carrying that fits into the budget (trie_plan.h).
int carried_stride(const LayerRunner& runner, std::int64_t tokens, std::int64_t budget) {
  for (int stride = 1; stride < runner.num_layers(); ++stride) {
    if (carried_bytes(runner, tokens, stride) <= budget) return stride;
  }
  return 0;
}

void check_memory(const LayerRunner& runner, std::int64_t tokens, int num_threads,
                  std::int64_t carried) {
  const auto walk = num_threads * runner.num_layers() * tokens *
                    (runner.hidden_bytes_per_token() + runner.index_set_bytes_per_token());
  const auto available = available_memory_bytes();
  if (walk + carried > available) {
    throw device_error(
        "context of {} tokens: the walk over patterns may need {} bytes on {} threads and {} for "
        "carried states, {} available; fewer threads, less carried or a shorter context would do",
        tokens - 1, walk, num_threads, carried, available);
  }
}

}  // namespace

TrieEvaluator::TrieEvaluator(const LayerRunner& runner, std::vector<Sequence> sequences,
                             const TrieOptions& options, Journal* journal,
                             SequenceObserver observer)
    : runner_(runner),
      sequences_(std::move(sequences)),
      threads_(SequenceThreads::choose(runner.on_device(), options.num_threads, sequences_.size())),
      journal_(journal),
      observer_(std::move(observer)),
      planner_(runner.num_layers(),
               carried_stride(runner, together(sequences_), options.carried_bytes)),
      trunks_(sequences_.size()) {
  INDEXCACHE_ASSERT(!sequences_.empty());
  for (Trunk& trunk : trunks_) {
    trunk.pattern = Pattern::full(runner.num_layers());
    trunk.after.resize(static_cast<std::size_t>(runner.num_layers()));
  }
  if (!runner.on_device()) {
    check_memory(runner, longest(sequences_), threads_.count,
                 carried_bytes(runner, together(sequences_), planner_.stride()));
  }
}

TrieEvaluator::~TrieEvaluator() = default;

std::vector<Losses> TrieEvaluator::evaluate(const Pattern& current,
                                            const std::vector<Pattern>& patterns) {
  const TriePlan plan = planner_.plan(current, patterns);
  layer_runs_ += static_cast<std::int64_t>(plan.steps.size());
  const std::int64_t call = calls_++;

  const int all = static_cast<int>(sequences_.size());
  std::vector<std::vector<double>> by_sequence(sequences_.size());
  std::vector<int> missing;
  for (int sequence = 0; sequence < all; ++sequence) {
    const auto* known = journal_ != nullptr ? journal_->find(call, sequence, patterns) : nullptr;
    if (known != nullptr) {
      by_sequence[sequence] = *known;
    } else {
      missing.push_back(sequence);
    }
  }
  int done = all - static_cast<int>(missing.size());
  replayed_ += done * static_cast<std::int64_t>(patterns.size());
  std::mutex mutex;
  threads_.run(missing, [&](int sequence) {
    by_sequence[sequence] = walk(plan, patterns, sequence);
    if (journal_ != nullptr) journal_->append(call, sequence, patterns, by_sequence[sequence]);
    const std::scoped_lock lock(mutex);
    ++done;
    if (observer_) observer_(done, all);
  });

  std::vector<Losses> losses(patterns.size());
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    for (const auto& sequence : by_sequence) losses[i].per_sequence.push_back(sequence[i]);
  }
  return losses;
}

TrieEvaluator::State TrieEvaluator::run(int layer, int source, const State& input,
                                        const std::vector<int>& live) const {
  const at::Tensor source_set =
      source == Pattern::kFull ? at::Tensor() : input.index_sets.at(source);
  LayerOutput output = runner_.run_layer(layer, input.hidden, source_set);
  State state;
  state.hidden = std::move(output.hidden);
  for (const int full : live) {
    state.index_sets[full] = full == layer ? output.own_set : input.index_sets.at(full);
  }
  return state;
}

// The trunk's state before `layer`. It is there, unless the calls that made it were answered by the
// journal.
const TrieEvaluator::State& TrieEvaluator::trunk_state(const TriePlan& plan, int layer,
                                                       int sequence) {
  Trunk& trunk = trunks_[sequence];
  if (layer == 0) {
    if (!trunk.embedded) trunk.embedded = State{runner_.embed(sequences_[sequence]), {}};
    return *trunk.embedded;
  }
  auto& state = trunk.after[layer - 1];
  if (!state) {
    std::vector<int> live;
    for (int full = 0; full < layer; ++full) {
      if (plan.trunk.is_full(full)) live.push_back(full);
    }
    state =
        run(layer - 1, plan.trunk.source(layer - 1), trunk_state(plan, layer - 1, sequence), live);
  }
  return *state;
}

std::vector<double> TrieEvaluator::walk(const TriePlan& plan, const std::vector<Pattern>& patterns,
                                        int sequence) {
  Trunk& trunk = trunks_[sequence];
  const int common = common_prefix(trunk.pattern, plan.trunk);
  for (int layer = common; layer < plan.trunk.num_layers(); ++layer) trunk.after[layer].reset();
  trunk.pattern = plan.trunk;

  std::vector<double> losses(patterns.size());
  std::vector<std::optional<State>> outputs(plan.steps.size());
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    const TrieStep& step = plan.steps[i];
    const State& input = step.input == TrieStep::kTrunk ? trunk_state(plan, step.layer, sequence)
                                                        : *outputs[step.input];
    State output = run(step.layer, step.source, input, step.live);
    if (step.last_reader) outputs[step.input].reset();
    if (step.leaf >= 0) {
      losses[step.leaf] = runner_.loss(sequences_[sequence], output.hidden);
      continue;
    }
    if (step.extends_trunk) trunk.after[step.layer] = output;
    outputs[i] = std::move(output);
  }
  trunk.embedded.reset();
  for (int layer = 0; layer < plan.trunk.num_layers(); ++layer) {
    if (!planner_.carries(layer)) trunk.after[layer].reset();
  }
  return losses;
}

}  // namespace indexcache
