// TriePlan: how a set of patterns is evaluated so that layers of a shared prefix run once. Pure
// bookkeeping: no model, no tensors.
//
// The patterns are the leaves of a tree with one level a layer: a node is a prefix of sources, and
// running its layer once serves all patterns below it. The walk is depth first, so at most one
// state a level waits for its other children. The trunk is the path of the pattern that a search
// stands at: its states are carried from one call to the next, as the next candidates branch off it
// too.
#pragma once

#include <cstdint>
#include <vector>

#include "indexcache/policy/pattern.h"

namespace indexcache {

// One layer run. A state is the hidden states after a layer and the index sets that later layers
// read.
struct TrieStep {
  static constexpr int kTrunk = -1;

  int layer = 0;
  int source = Pattern::kFull;
  // The step whose output state is this one's input, or kTrunk: the trunk's state before `layer`
  // (before layer 0: the embeddings).
  int input = kTrunk;
  bool last_reader = false;    // no later step reads `input`
  bool extends_trunk = false;  // the output is kept as the trunk's state after `layer`
  std::vector<int> live;       // Full layers up to `layer` whose index sets the output state holds
  int leaf = -1;               // the pattern that ends here, where `layer` is the last
};

struct TriePlan {
  Pattern trunk = Pattern::full(1);
  std::vector<TrieStep> steps;
};

class TriePlanner {
 public:
  // Carries the trunk's states after every `stride`-th layer; 0 carries none.
  TriePlanner(int num_layers, int stride);

  // `patterns` are distinct. The plan leaves the trunk at `current`.
  TriePlan plan(const Pattern& current, const std::vector<Pattern>& patterns);

  int stride() const { return stride_; }
  bool carries(int layer) const { return stride_ > 0 && (layer + 1) % stride_ == 0; }

 private:
  class Walk;
  int num_layers_;
  int stride_;
  Pattern trunk_;
  std::vector<bool> carried_;  // by layer: whether the trunk's state after it is kept
};

// Length of the longest common prefix of two patterns' sources.
int common_prefix(const Pattern& a, const Pattern& b);

}  // namespace indexcache
