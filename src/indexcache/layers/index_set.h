// The index set of a chunk of tokens, as a layer leaves it for those that read it too, with what
// their attention can share beyond the list itself.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "indexcache/ops/index_union/index_union.h"

namespace indexcache {

// The sets of neighbouring tokens as unions, each key once (ops/index_union).
struct GroupedSet {
  at::Tensor group_begin;  // [G + 1] int32: the tokens of each group, as query_groups makes them
  IndexUnion keys;
};

class IndexSet {
 public:
  IndexSet() = default;
  // [T, k] int32, contiguous; a row holds positions, ascending, then -1: what index_topk gives. Not
  // explicit: a tensor is a set of its own.
  IndexSet(at::Tensor indices);

  bool defined() const { return indices_.defined(); }
  const at::Tensor& indices() const { return indices_; }

  // The first call builds it, for a chunk whose first token is at `first_position`; copies share it.
  // Not for several threads at once.
  const GroupedSet& grouped(std::int64_t first_position) const;

 private:
  at::Tensor indices_;
  std::shared_ptr<GroupedSet> grouped_;  // empty until it is asked for
};

}  // namespace indexcache
