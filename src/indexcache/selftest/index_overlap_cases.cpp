#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/sort.h>
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "indexcache/ops/index_overlap/index_overlap_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

// [M, k] of distinct ascending entries below num_keys, then -1; the rows have every length, from
// none on.
at::Tensor make_sets(std::int64_t num_queries, std::int64_t k, std::int64_t num_keys,
                     const at::Generator& generator) {
  const auto order = std::get<1>(at::rand({num_queries, num_keys}, generator).sort(1)).to(at::kInt);
  auto sets = at::empty({num_queries, k}, at::kInt).fill_(-1);
  for (std::int64_t t = 0; t < num_queries; ++t) {
    const auto length = std::min(t % (k + 1), num_keys);
    sets[t].narrow(0, 0, length).copy_(std::get<0>(order[t].narrow(0, 0, length).sort()));
  }
  return sets;
}

}  // namespace

void index_overlap_cases(const SelfTestRun& run, const std::function<decltype(index_overlap)>& op) {
  struct Case {
    std::int64_t num_queries, k_a, k_b, num_keys;
  };
  for (const Case& c :
       {Case{2, 1, 1, 1}, Case{65, 64, 64, 100}, Case{40, 33, 7, 50}, Case{9, 2048, 2048, 5000}}) {
    const auto a = make_sets(c.num_queries, c.k_a, c.num_keys, run.generator);
    // Read from its end, so that long rows meet short ones.
    const auto b = make_sets(c.num_queries, c.k_b, c.num_keys, run.generator).flip(0);
    const auto result = [&] { return op(a.to(run.device), b.to(run.device)); };
    const auto expected = at::empty({c.num_queries}, at::kInt);
    index_overlap_ref({.num_queries = c.num_queries,
                       .k_a = c.k_a,
                       .k_b = c.k_b,
                       .a = a.const_data_ptr<std::int32_t>(),
                       .b = b.const_data_ptr<std::int32_t>(),
                       .out = expected.data_ptr<std::int32_t>()});
    const auto out = result();
    const Verdict verdict = both(check_equal(out, expected), check_same_bits(out, result()));
    run.report(
        {"index_overlap",
         fmt::format("{} queries, {} and {} of {} keys", c.num_queries, c.k_a, c.k_b, c.num_keys),
         verdict.worst, verdict.failure});
  }
}

}  // namespace indexcache
