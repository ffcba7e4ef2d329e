#include "indexcache/calibrate/trie_plan.h"

#include <algorithm>
#include <map>

#include "indexcache/base/error.h"

namespace indexcache {

int common_prefix(const Pattern& a, const Pattern& b) {
  INDEXCACHE_ASSERT(a.num_layers() == b.num_layers());
  const auto end = std::ranges::mismatch(a.sources(), b.sources()).in1;
  return static_cast<int>(end - a.sources().begin());
}

TriePlanner::TriePlanner(int num_layers, int stride)
    : num_layers_(num_layers),
      stride_(stride),
      trunk_(Pattern::full(num_layers)),
      carried_(num_layers, false) {}

class TriePlanner::Walk {
 public:
  Walk(TriePlanner& planner, const std::vector<Pattern>& patterns, TriePlan& plan)
      : planner_(planner), patterns_(patterns), plan_(plan) {}

  // All patterns of `group` have the same sources before `layer`; `input` is their state there.
  // `on_trunk`: so has the trunk.
  void visit(const std::vector<int>& group, int layer, int input, bool on_trunk) {
    for (const auto& [source, members] : children(group, layer)) {
      const bool child_on_trunk = on_trunk && source == planner_.trunk_.source(layer);
      if (child_on_trunk && !needs_state(members, layer)) {
        visit(members, layer + 1, TrieStep::kTrunk, true);
      } else {
        run(members, layer, source, input, child_on_trunk);
      }
    }
  }

 private:
  using Children = std::map<int, std::vector<int>>;

  Children children(const std::vector<int>& group, int layer) const {
    Children by_source;
    for (const int pattern : group) by_source[patterns_[pattern].source(layer)].push_back(pattern);
    return by_source;
  }

  // Whether the trunk's state after `layer` must be computed for `group`: it is not carried, and
  // some pattern leaves the trunk before a carried state, or ends.
  bool needs_state(const std::vector<int>& group, int layer) const {
    if (planner_.carried_[layer]) return false;
    if (layer + 1 == planner_.num_layers_) return true;
    const auto below = children(group, layer + 1);
    const auto next = below.find(planner_.trunk_.source(layer + 1));
    return below.size() > 1 || next == below.end() || needs_state(next->second, layer + 1);
  }

  void run(const std::vector<int>& members, int layer, int source, int input, bool on_trunk) {
    const int index = static_cast<int>(plan_.steps.size());
    TrieStep step;
    step.layer = layer;
    step.source = source;
    step.input = input;
    step.live = live_sets(members, layer, on_trunk);
    const bool is_last = layer + 1 == planner_.num_layers_;
    if (is_last) {
      INDEXCACHE_ASSERT(members.size() == 1);
      step.leaf = members.front();
    }
    step.extends_trunk = on_trunk && !is_last && planner_.carries(layer);
    if (step.extends_trunk) newly_carried_.push_back(layer);
    plan_.steps.push_back(std::move(step));
    if (!is_last) visit(members, layer + 1, index, on_trunk);
  }

  // What later layers of these patterns read; on the trunk, what those of any pattern may read.
  std::vector<int> live_sets(const std::vector<int>& members, int layer, bool on_trunk) const {
    std::vector<bool> read(layer + 1, false);
    for (const int member : members) {
      const Pattern& pattern = patterns_[member];
      for (int reader = layer + 1; reader < pattern.num_layers(); ++reader) {
        const int source = pattern.source(reader);
        if (source != Pattern::kFull && source <= layer) read[source] = true;
      }
    }
    if (on_trunk && planner_.stride_ > 0 && layer + 1 < planner_.num_layers_) {
      for (int full = 0; full <= layer; ++full) {
        if (planner_.trunk_.is_full(full)) read[full] = true;
      }
    }
    std::vector<int> live;
    for (int full = 0; full <= layer; ++full) {
      if (read[full]) live.push_back(full);
    }
    return live;
  }

 public:
  std::vector<int> newly_carried_;

 private:
  TriePlanner& planner_;
  const std::vector<Pattern>& patterns_;
  TriePlan& plan_;
};

TriePlan TriePlanner::plan(const Pattern& current, const std::vector<Pattern>& patterns) {
  const int common = common_prefix(trunk_, current);
  std::fill(carried_.begin() + common, carried_.end(), false);
  trunk_ = current;

  TriePlan plan;
  plan.trunk = current;
  Walk walk(*this, patterns, plan);
  std::vector<int> all(patterns.size());
  for (std::size_t i = 0; i < patterns.size(); ++i) all[i] = static_cast<int>(i);
  walk.visit(all, 0, TrieStep::kTrunk, true);
  for (const int layer : walk.newly_carried_) carried_[layer] = true;

  std::vector<bool> read(plan.steps.size(), false);
  for (auto step = plan.steps.rbegin(); step != plan.steps.rend(); ++step) {
    if (step->input == TrieStep::kTrunk) continue;
    step->last_reader = !read[step->input];
    read[step->input] = true;
  }
  return plan;
}

}  // namespace indexcache
