// index_union's kernel against its reference, on a GPU.
#include "indexcache/kernels/query_groups.h"
#include "indexcache/ops/index_union/index_union_params.h"
#include "support/device_check.h"
#include "support/index_sets.h"

namespace indexcache::testing {
namespace {

struct Union {
  std::vector<std::int32_t> entries, counts;
};

// Unwritten entries hold the guard pattern in both.
Union run_reference(const std::vector<std::int32_t>& sets, std::int64_t k,
                    const QueryGroups& groups) {
  const auto num_groups = static_cast<std::int64_t>(groups.request.size());
  Union u{std::vector<std::int32_t>(num_groups * kGroupQueries * k,
                                    static_cast<std::int32_t>(0xA5A5A5A5)),
          std::vector<std::int32_t>(num_groups)};
  index_union_ref({.num_groups = num_groups,
                   .group_begin = groups.begin.data(),
                   .top_k = k,
                   .indices = sets.data(),
                   .entry_stride = kGroupQueries * k,
                   .entries = u.entries.data(),
                   .counts = u.counts.data()});
  return u;
}

Union run_device(const std::vector<std::int32_t>& sets, std::int64_t k, const QueryGroups& groups,
                 const std::string& name) {
  const auto num_groups = static_cast<std::int64_t>(groups.request.size());
  const DeviceArray<std::int32_t> indices(sets), begin(groups.begin),
      entries(num_groups * kGroupQueries * k), counts(num_groups);
  const IndexUnionParams params = {.num_groups = num_groups,
                                   .group_begin = begin.data(),
                                   .top_k = k,
                                   .indices = indices.data(),
                                   .entry_stride = kGroupQueries * k,
                                   .entries = entries.data(),
                                   .counts = counts.data()};
  Union first;
  for (int launch = 0; launch < 20; ++launch) {
    require_cuda(index_union_cuda(params, nullptr), name);
    finish_device(name);
    Union u{entries.copy(), counts.copy()};
    if (launch == 0) first = u;
    expect(same_bits(u.entries, first.entries) && same_bits(u.counts, first.counts),
           name + ": a launch gave another result");
  }
  return first;
}

void compare(const Union& found, const Union& expected, std::int64_t stride,
             const std::string& name) {
  for (std::size_t i = 0; i < expected.counts.size(); ++i) {
    if (found.counts[i] != expected.counts[i]) {
      return expect(false, name + ": group " + std::to_string(i) + " has " +
                               std::to_string(found.counts[i]) + " entries, expected " +
                               std::to_string(expected.counts[i]));
    }
  }
  for (std::size_t i = 0; i < expected.entries.size(); ++i) {
    if (found.entries[i] != expected.entries[i]) {
      return expect(false, name + ": group " + std::to_string(i / stride) + " entry " +
                               std::to_string(i % stride) + " is " +
                               std::to_string(found.entries[i]) + ", expected " +
                               std::to_string(expected.entries[i]));
    }
  }
  std::printf("ok %s\n", name.c_str());
}

}  // namespace
}  // namespace indexcache::testing

int main() {
  using namespace indexcache::testing;
  if (!find_device()) return kNoDevice;
  std::mt19937 random(41);
  for (const std::int64_t k : {1, 2, 31, 255, 256, 700, 2048}) {
    for (const double shared : {0.0, 0.6, 1.0}) {
      const auto groups = indexcache::query_groups({{0, 3}, {2, 5}, {10, 0}, {4, 1}, {6, 4}});
      for (const std::int64_t ids : {k, 3 * k + 7, std::int64_t{1} << 29}) {
        const std::string name = "index_union k " + std::to_string(k) + " of " +
                                 std::to_string(ids) + " ids, " + std::to_string(shared);
        const auto sets = random_sets(13, k, ids, shared, random);
        compare(run_device(sets, k, groups, name), run_reference(sets, k, groups),
                indexcache::kGroupQueries * k, name);
      }
    }
  }
  return device_result("index_union");
}
