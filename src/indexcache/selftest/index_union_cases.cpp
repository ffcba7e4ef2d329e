#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "indexcache/ops/index_union/index_union_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

// [M, k] ascending, then -1: of each query the k keys with the largest of values that its
// neighbours' resemble; every fifth row is short.
at::Tensor make_sets(std::int64_t num_queries, std::int64_t k, std::int64_t num_keys,
                     const at::Generator& generator) {
  const auto values =
      at::rand({1, num_keys}, generator) + 0.3 * at::rand({num_queries, num_keys}, generator);
  const auto order = std::get<1>(values.sort(1)).to(at::kInt);
  auto sets = at::empty({num_queries, k}, at::kInt).fill_(-1);
  for (std::int64_t t = 0; t < num_queries; ++t) {
    const auto length = t % 5 == 4 ? std::min(t, k) : std::min(k, num_keys);
    sets[t].narrow(0, 0, length).copy_(std::get<0>(order[t].narrow(0, 0, length).sort()));
  }
  return sets;
}

// Groups of two, three, one, two, ... queries.
at::Tensor make_groups(std::int64_t num_queries) {
  std::vector<std::int32_t> begin = {0};
  while (begin.back() < num_queries) {
    const auto size = static_cast<std::int32_t>(begin.size() % kGroupQueries + 1);
    begin.push_back(std::min(begin.back() + size, static_cast<std::int32_t>(num_queries)));
  }
  return at::tensor(begin, at::kInt);
}

// What lies beyond a group's count is unspecified: zeros in its place.
at::Tensor used_entries(const IndexUnion& u) {
  const auto entries = u.entries.cpu();
  const auto place = at::arange(entries.size(1)).unsqueeze(0);
  return entries.masked_fill(place.ge(u.counts.cpu().unsqueeze(1)), 0);
}

}  // namespace

void index_union_cases(const SelfTestRun& run, const std::function<decltype(index_union)>& op) {
  struct Case {
    std::int64_t num_queries, k, num_keys;
  };
  for (const Case& c : {Case{2, 1, 1}, Case{20, 33, 50}, Case{13, 700, 900}, Case{9, 2048, 5000}}) {
    const auto sets = make_sets(c.num_queries, c.k, c.num_keys, run.generator);
    const at::Tensor begin = make_groups(c.num_queries);
    const auto result = [&] { return op(sets.to(run.device), begin.to(run.device)); };
    const std::int64_t num_groups = begin.size(0) - 1;
    IndexUnion expected{at::empty({num_groups, kGroupQueries * c.k}, at::kInt),
                        at::empty({num_groups}, at::kInt)};
    index_union_ref({.num_groups = num_groups,
                     .group_begin = begin.const_data_ptr<std::int32_t>(),
                     .top_k = c.k,
                     .indices = sets.const_data_ptr<std::int32_t>(),
                     .entry_stride = kGroupQueries * c.k,
                     .entries = expected.entries.data_ptr<std::int32_t>(),
                     .counts = expected.counts.data_ptr<std::int32_t>()});
    const IndexUnion found = result(), again = result();
    Verdict verdict = check_equal(found.counts.cpu(), expected.counts);
    verdict = both(verdict, check_equal(used_entries(found), used_entries(expected)));
    verdict = both(verdict, check_same_bits(used_entries(found), used_entries(again)));
    run.report({"index_union",
                fmt::format("{} queries, {} of {} keys", c.num_queries, c.k, c.num_keys),
                verdict.worst, verdict.failure});
  }
}

}  // namespace indexcache
