#include "indexcache/ops/index_overlap/index_overlap.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include "indexcache/base/error.h"
#include "indexcache/ops/index_overlap/index_overlap_params.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {
namespace {

void validate(const at::Tensor& sets, const char* argument) {
  if (sets.dim() == 2 && sets.scalar_type() == at::kInt && sets.is_contiguous()) return;
  throw expectation_error(fmt::format("index_overlap: {}", argument), "contiguous int32 [M, k]",
                          c10::str(sets.scalar_type(), " ", sets.sizes()));
}

}  // namespace

at::Tensor index_overlap(const at::Tensor& a, const at::Tensor& b) {
  validate(a, "a");
  validate(b, "b");
  if (a.size(0) != b.size(0)) {
    throw expectation_error("index_overlap: b", fmt::format("{} rows", a.size(0)),
                            fmt::format("{}", b.size(0)));
  }
  const auto a_cpu = a.cpu(), b_cpu = b.cpu();
  auto out = at::empty({a.size(0)}, a_cpu.options());
  index_overlap_cpu({.num_queries = a.size(0),
                     .k_a = a.size(1),
                     .k_b = b.size(1),
                     .a = a_cpu.const_data_ptr<std::int32_t>(),
                     .b = b_cpu.const_data_ptr<std::int32_t>(),
                     .out = out.mutable_data_ptr<std::int32_t>()},
                    torch_pool());
  return out;
}

}  // namespace indexcache
