#include "indexcache/layers/index_set.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include <utility>

#include "indexcache/kernels/union_entry.h"

namespace indexcache {
namespace {

// kernels/query_groups.h for one span, made where the set is: copied there, it would wait for the
// device.
at::Tensor group_begin_of(const at::Tensor& indices, std::int64_t first_position) {
  const std::int64_t num_tokens = indices.size(0), before = first_position % kGroupQueries;
  const std::int64_t groups = (before + num_tokens + kGroupQueries - 1) / kGroupQueries;
  return at::arange(-before, groups * kGroupQueries - before + 1, kGroupQueries, indices.options())
      .clamp_(0, num_tokens);
}

}  // namespace

IndexSet::IndexSet(at::Tensor indices)
    : indices_(std::move(indices)), grouped_(std::make_shared<GroupedSet>()) {}

const GroupedSet& IndexSet::grouped(std::int64_t first_position) const {
  if (!grouped_->group_begin.defined()) {
    grouped_->group_begin = group_begin_of(indices_, first_position);
    grouped_->keys = index_union(indices_, grouped_->group_begin);
  }
  return *grouped_;
}

}  // namespace indexcache
