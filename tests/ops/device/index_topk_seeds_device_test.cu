// Seeds of index_topk's Hopper kernels on the GPU: whatever they are, the result is that of none. Prints
// a line per case; exits with 1 if any failed. usage: index_topk_seeds_device_test [--small]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "support/index_topk_problems.h"

namespace indexcache::testing {
namespace {

// Seeds of every kind give the result that none do.
bool seeds_change_nothing(Problem p) {
  std::printf("%-60s", p.name.c_str());
  std::fflush(stdout);
  p.encode();
  const auto expected = DeviceProblem(p).run();
  const int k = p.top_k;
  Random random(40);
  std::uniform_int_distribution<int> any(0, p.keys - 1);
  const auto seeded = [&](int count, const std::function<std::int32_t(int, int)>& seed) {
    p.seeds.clear();
    for (int t = 0; t < p.queries; ++t) {
      for (int i = 0; i < count; ++i) p.seeds.push_back(seed(t, i));
    }
    // Whole ranges, for which alone seeds are read; and pieces.
    DeviceProblem two(p, Blocks::kTwo), all(p);
    return two.run() == expected && two.run() == expected && two.intact() &&
           all.run() == expected && all.intact();
  };
  const auto of_query = [&](int t, int i) { return expected[std::size_t(t) * k + i]; };
  std::vector<std::int32_t> order(k);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const std::pair<const char*, bool> results[] = {
      {"perfect", seeded(k, [&](int t, int i) { return of_query(t, order[i]); })},
      {"a neighbour's", seeded(k, [&](int t, int i) { return of_query(t ? t - 1 : 1, i); })},
      {"the first query's", seeded(k, [&](int, int i) { return of_query(0, i); })},
      {"half", seeded(k / 2, [&](int t, int i) { return of_query(t, 2 * i); })},
      {"twice", seeded(2 * k, [&](int t, int i) { return of_query(t, i / 2); })},
      {"one key", seeded(k, [&](int t, int) { return of_query(t, k / 3); })},
      {"worst", seeded(k, [&](int t, int i) { return p.end[t] - p.start[t] - 1 - i; })},
      {"random", seeded(k, [&](int, int) { return any(random); })},
      {"some out of range", seeded(k,
                                   [&](int t, int i) {
                                     return i % 3 == 0   ? -1 - i
                                            : i % 3 == 1 ? p.end[t] - p.start[t] + i
                                                         : of_query(t, i);
                                   })},
      {"far out of range", seeded(64,
                                  [&](int, int i) {
                                    return i % 2 ? std::numeric_limits<std::int32_t>::max() - i
                                                 : std::numeric_limits<std::int32_t>::min() + i;
                                  })},
      {"padding", seeded(k, [&](int, int) { return -1; })},
  };
  bool same = true;
  for (const auto& [name, passed] : results) {
    if (!passed) std::printf(" [%s differ]", name);
    same = same && passed;
  }
  std::printf(" %s\n", same ? "ok" : "FAILED");
  return same;
}

using Make = std::function<Problem()>;

std::vector<Make> seed_cases(bool small) {
  const auto e4m3 = IndexKeyFormat::kE4M3;
  const int keys = small ? 12000 : 50000, top_k = small ? 500 : 2048;
  return {
      [=] {
        return gaussian(e4m3, {20, 32, keys, top_k}, 41);
      },
      [=] {
        Problem p = gaussian(e4m3, {13, 32, keys, top_k}, 42);
        make_causal(p);
        for (int t = 0; t < p.queries; ++t) p.start[t] = 3 * t;
        return p;
      },
      [=] {
        return lattice(e4m3, {9, 64, keys, top_k}, 43);
      },
      [=] {
        return gaussian(e4m3, {16, 16, keys, top_k / 2}, 44);
      },
      [=] {
        return gaussian(IndexKeyFormat::kBFloat16, {16, 32, keys, top_k}, 45);
      },
      [=] {
        Problem p = gaussian(e4m3, {16, 32, keys, top_k}, 46);
        shape_keys(p, "constant", [](int) { return 1.0f; });
        return p;
      },
      [=] {
        Problem p = gaussian(e4m3, {24, 32, keys, top_k}, 47);
        p.name = "pages " + p.name;
        p.paged = true;
        return p;
      },
      [=] {
        return decoding(gaussian(e4m3, {14, 32, keys, top_k}, 48), 1, 9);
      },
      [=] {
        return decoding(gaussian(e4m3, {28, 32, keys, top_k}, 49), 2, 9);
      },
      [=] {
        return decoding(gaussian(e4m3, {2, 32, keys, top_k}, 50), 1, 9);
      },
  };
}

}  // namespace
}  // namespace indexcache::testing

int main(int argc, char** argv) {
  using namespace indexcache::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return 77;  // skipped
  const bool small = argc > 1 && std::string(argv[1]) == "--small";
  int run = 0, failed = 0;
  for (const Make& make : seed_cases(small)) {
    ++run;
    failed += !seeds_change_nothing(make());
  }
  std::printf("index_topk's seeds on the device: %d cases, %d failed\n", run, failed);
  return failed > 0 ? 1 : 0;
}
