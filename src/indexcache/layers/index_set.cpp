#include "indexcache/layers/index_set.h"

#include <ATen/ops/tensor.h>

#include <utility>

#include "indexcache/kernels/query_groups.h"

namespace indexcache {

IndexSet::IndexSet(at::Tensor indices)
    : indices_(std::move(indices)), grouped_(std::make_shared<GroupedSet>()) {}

const GroupedSet& IndexSet::grouped(std::int64_t first_position) const {
  if (!grouped_->group_begin.defined()) {
    const auto groups = query_groups({{first_position, indices_.size(0)}});
    grouped_->group_begin = at::tensor(groups.begin, at::kInt).to(indices_.device());
    grouped_->keys = index_union(indices_, grouped_->group_begin);
  }
  return *grouped_;
}

}  // namespace indexcache
