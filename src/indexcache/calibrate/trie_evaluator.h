// TrieEvaluator: the losses of patterns on calibration sequences, by walking their trie
// (trie_plan.h).
//
// Each sequence is walked on one thread (sequences.h), so a loss has the same bits on any number of
// threads and in any company of other patterns.
//
// Memory, with T tokens a sequence, N layers, H bytes of hidden state and I bytes of index set a
// token: each thread holds at most N states of T * (H + I) bytes; the carried trunk adds at most
// `carried_bytes` in all.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "indexcache/calibrate/layer_runner.h"
#include "indexcache/calibrate/sequences.h"
#include "indexcache/calibrate/trie_plan.h"
#include "indexcache/policy/pattern.h"
#include "indexcache/search/journal.h"
#include "indexcache/search/search.h"

namespace indexcache {

struct TrieOptions {
  int num_threads = 0;                                 // 0: as many as libtorch uses
  std::int64_t carried_bytes = std::int64_t{2} << 30;  // for the trunk's states between calls
};

// Told after each sequence of a call: sequences done and all of them.
using SequenceObserver = std::function<void(int done, int all)>;

class TrieEvaluator {
 public:
  // Throws DeviceError if the walk's states do not fit into memory. `journal` (may be null) answers
  // for what a killed search measured and records what this one does.
  TrieEvaluator(const LayerRunner& runner, std::vector<Sequence> sequences,
                const TrieOptions& options, Journal* journal = nullptr,
                SequenceObserver observer = {});
  ~TrieEvaluator();

  // As Evaluate of search.h.
  std::vector<Losses> evaluate(const Pattern& current, const std::vector<Pattern>& patterns);

  // Layer evaluations a sequence, as made by a search that was never killed.
  std::int64_t layer_runs() const { return layer_runs_; }
  // Evaluations that the journal answered; sequences count as their share of one.
  std::int64_t replayed() const { return replayed_ / static_cast<std::int64_t>(sequences_.size()); }

 private:
  struct State;
  struct Trunk;

  std::vector<double> walk(const TriePlan& plan, const std::vector<Pattern>& patterns,
                           int sequence);
  const State& trunk_state(const TriePlan& plan, int layer, int sequence);
  State run(int layer, int source, const State& input, const std::vector<int>& live) const;

  const LayerRunner& runner_;
  std::vector<Sequence> sequences_;
  SequenceThreads threads_;
  Journal* journal_;
  SequenceObserver observer_;
  TriePlanner planner_;
  std::vector<Trunk> trunks_;  // by sequence
  std::int64_t calls_ = 0, layer_runs_ = 0;
  std::int64_t replayed_ = 0;  // evaluations of single sequences
};

}  // namespace indexcache
