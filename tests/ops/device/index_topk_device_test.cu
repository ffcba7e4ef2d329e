// index_topk's Hopper kernels on the GPU: every path against the double reference and against a
// selection over the scores that the same kernel dumps. Prints a line per case; exits with 1 if any
// failed. usage: index_topk_device_test [--small | --layouts] [NAME-PART]
//   --small    small shapes, for sanitizers
//   --layouts  each layout of the kernels once whole and once in pieces, with seeds too: for racecheck
#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/index_topk_problems.h"

namespace indexcache::testing {
namespace {

std::vector<std::int32_t> select(const float* scores, int start, int end, int top_k) {
  const int range = std::max(0, end - start), kept = std::min(range, top_k);
  std::vector<std::int32_t> order(range);
  std::iota(order.begin(), order.end(), start);
  const auto better = [&](std::int32_t a, std::int32_t b) {
    const float x = scores[a], y = scores[b];
    if (std::isnan(x) || std::isnan(y)) {
      if (std::isnan(x) && std::isnan(y)) return a < b;
      return std::isnan(y);
    }
    return x != y ? x > y : a < b;
  };
  if (kept < range) std::nth_element(order.begin(), order.begin() + kept, order.end(), better);
  order.resize(kept);
  std::sort(order.begin(), order.end());
  for (std::int32_t& index : order) index -= start;
  order.resize(top_k, -1);
  return order;
}

struct Outcome {
  bool failed = false;
  double worst = 0;  // error over magnitude
  void fail(const std::string& text) {
    if (!failed) std::printf("  FAILED: %s\n", text.c_str());
    failed = true;
  }
};

// A dot of 128 products in the tensor core: each step adds its products and the sum so far at the
// scale of the largest, cut below 13 (e4m3) or 23 (bf16) fraction bits; each of the terms loses less
// than a unit there, and no term exceeds the sum of magnitudes.
double dot_bound(IndexKeyFormat format) {
  return format == IndexKeyFormat::kE4M3 ? 4 * 33 * std::ldexp(1, -12)
                                         : 8 * 17 * std::ldexp(1, -22);
}

void check_scores(const Problem& p, const std::vector<float>& scores, Outcome& outcome) {
  const double bound = dot_bound(p.format) + (p.heads + 4) * std::ldexp(1, -24);
  const int stride = std::max(1, p.queries / 12);
  std::vector<double> worst(p.queries, 0);
  std::vector<std::string> wrong(p.queries);
  const int key_stride = std::max(1, p.keys / 2000);
  in_threads((p.queries + stride - 1) / stride, [&](std::int64_t row) {
    const int t = static_cast<int>(row) * stride;
    const IndexTopkCudaParams host = p.host(t);
    for (int s = std::max(p.start[t], 0) + t % key_stride; s < p.end[t]; s += key_stride) {
      const IndexScoreRef ref = index_score_ref(host, t, s);
      const float found = scores[std::size_t(t) * p.keys + s];
      if (std::isnan(ref.score) && std::isnan(found)) continue;
      if (std::isinf(ref.score) && ref.score == found) continue;
      const double error = std::abs(found - ref.score);
      if (p.lattice ? error != 0 : !(error <= bound * ref.magnitude)) {
        if (wrong[t].empty()) {
          char text[200];
          std::snprintf(text, sizeof text, "score of query %d key %d: expected %.9g, found %.9g", t,
                        s, ref.score, found);
          wrong[t] = text;
        }
      }
      if (ref.magnitude > 0) worst[t] = std::max(worst[t], error / ref.magnitude);
    }
  });
  for (int t = 0; t < p.queries; ++t) {
    if (!wrong[t].empty()) outcome.fail(wrong[t]);
    outcome.worst = std::max(outcome.worst, worst[t]);
  }
}

void check_sets(const Problem& p, const std::vector<float>& scores,
                const std::vector<std::int32_t>& out, Outcome& outcome) {
  std::vector<std::string> wrong(p.queries);
  in_threads(p.queries, [&](std::int64_t t) {
    const auto expected = select(&scores[std::size_t(t) * p.keys], p.start[t], p.end[t], p.top_k);
    for (int i = 0; i < p.top_k; ++i) {
      const std::int32_t found = out[t * p.top_k + i];
      if (found == expected[i]) continue;
      wrong[t] = "set of query " + std::to_string(t) + " place " + std::to_string(i) +
                 ": expected " + std::to_string(expected[i]) + ", found " + std::to_string(found);
      break;
    }
  });
  for (const std::string& text : wrong) {
    if (!text.empty()) outcome.fail(text);
  }
}

// How much is launched for a case beside the launch that also dumps the scores.
struct Effort {
  int relaunches;  // of the same plan
  std::vector<Blocks> plans;
  int launches;  // of each of these
};

bool passes(Problem p, const Effort& effort) {
  std::printf("%-60s", p.name.c_str());
  std::fflush(stdout);
  p.encode();
  Outcome outcome;
  DeviceProblem device(p);
  std::vector<float> scores;
  const auto out = device.run(&scores);
  if (p.keys > 0 && p.queries > 0) check_scores(p, scores, outcome);
  check_sets(p, scores, out, outcome);
  for (int i = 0; i < effort.relaunches && !outcome.failed; ++i) {
    if (device.run() != out) outcome.fail("relaunch " + std::to_string(i) + " differs");
  }
  if (!device.intact()) outcome.fail("guard bytes were written");
  for (const Blocks blocks : effort.plans) {
    const std::string name = blocks == Blocks::kOne ? "one block" : "two blocks";
    DeviceProblem few(p, blocks);
    for (int i = 0; i < effort.launches && !outcome.failed; ++i) {
      if (few.run() != out) outcome.fail(name + " differ");
    }
    if (!few.intact()) outcome.fail("guard bytes were written by " + name);
  }
  std::printf(" %s  error/magnitude %.2g\n", outcome.failed ? "FAILED" : "ok", outcome.worst);
  return !outcome.failed;
}

// The same queries and keys by prefill and by decode of 1 to 4 tokens: the same bits of scores.
bool same_bits(IndexKeyFormat format, int heads) {
  Problem p = gaussian(format, {4, heads, 3001, 64}, 21);
  std::printf("same bits in prefill and decode: %-26s", p.name.c_str());
  p.encode();
  std::vector<float> prefill;
  DeviceProblem(p).run(&prefill);
  bool same = true;
  for (const int tokens : {1, 2, 4}) {
    Problem d = p;
    d.tokens = tokens;
    d.paged = format == IndexKeyFormat::kE4M3;
    for (int request = 1; d.paged && request < d.requests(); ++request) {
      d.k.insert(d.k.end(), p.k.begin(), p.k.end());
      d.scale.insert(d.scale.end(), p.scale.begin(), p.scale.end());
    }
    d.encode();
    std::vector<float> decode;
    DeviceProblem(d).run(&decode);
    same = same && std::memcmp(prefill.data(), decode.data(), prefill.size() * 4) == 0;
  }
  std::printf(" %s\n", same ? "ok" : "FAILED");
  return same;
}

using Make = std::function<Problem()>;

std::vector<Make> small_cases() {
  std::vector<Make> cases;
  for (const IndexKeyFormat f : {IndexKeyFormat::kE4M3, IndexKeyFormat::kBFloat16}) {
    for (const Shape s : {Shape{1, 32, 1, 1}, Shape{1, 32, 128, 16}, Shape{8, 32, 300, 64},
                          Shape{3, 1, 77, 2048}, Shape{9, 20, 1000, 128}, Shape{5, 64, 517, 100},
                          Shape{8, 16, 2500, 2048}, Shape{13, 33, 400, 512}, Shape{4, 8, 0, 4}}) {
      cases.push_back([=] { return lattice(f, s, 1); });
      cases.push_back([=] { return gaussian(f, s, 2); });
    }
    cases.push_back([=] {
      Problem p = gaussian(f, {21, 32, 900, 64}, 3);
      make_ragged(p, 4);
      return p;
    });
    for (const Shape s : {Shape{19, 32, 901, 64}, Shape{9, 64, 7003, 500}, Shape{8, 8, 6001, 64}}) {
      cases.push_back([=] {
        Problem p = gaussian(f, s, 40);
        make_windows(p);
        return p;
      });
    }
    cases.push_back([=] {  // the sample, the scan, a cut list: on a small shape
      Problem p = gaussian(f, {4, 8, 20000, 2048}, 5);
      return p;
    });
  }
  return cases;
}

// Keys that are hard for the selection, by their lengths.
struct KeyLengths {
  std::string name;
  std::function<float(int)> of;
};
std::vector<KeyLengths> hard_lengths(int n) {
  return {
      {"constant", [](int) { return 1.0f; }},
      {"all zero", [](int) { return 0.0f; }},
      {"zero plateau", [](int i) { return i % 97 == 0 ? 1.0f + 0.001f * (i % 640) : 0.0f; }},
      {"ascending", [n](int i) { return 0.1f + 3.0f * static_cast<float>(i) / n; }},
      {"descending", [n](int i) { return 3.1f - 3.0f * static_cast<float>(i) / n; }},
      {"clustered", [](int i) { return i / 3000 % 7 == 3 ? 2.0f + (i % 11) * 0.1f : 0.2f; }},
      {"last keys", [n](int i) { return i >= n - 4000 ? 3.0f : 0.5f; }},
      // All of the best in one piece of 132, and of two.
      {"of one piece", [](int i) { return i / 64 % 132 == 4 ? 2.0f + (i % 13) * 0.1f : 0.5f; }},
  };
}

Problem with_lengths(IndexKeyFormat f, Shape s, const KeyLengths& lengths) {
  Problem p = gaussian(f, s, 11);
  p.scale.assign(s.keys, 1.0f);
  for (float& w : p.weights) w = std::abs(w);
  shape_keys(p, lengths.name, lengths.of);
  return p;
}

std::vector<Make> decode_cases(bool small) {
  const auto f = IndexKeyFormat::kE4M3;
  std::vector<Make> cases;
  for (const int tokens : {1, 2, 3, 4}) {
    cases.push_back([=] {
      return decoding(lattice(f, {tokens * 9, 32, 777, 128}, 31), tokens, 1);
    });
    cases.push_back([=] {
      return decoding(gaussian(f, {tokens * 3, 64, 1500, 2048}, 32), tokens, 2);
    });
  }
  cases.push_back([=] {
    Problem p = gaussian(f, {19, 32, 5000, 300}, 33);
    make_ragged(p, 6);
    p.name = "pages " + p.name;
    p.paged = true;
    return p;
  });
  if (small) return cases;
  for (const int heads : {20, 32, 64}) {
    cases.push_back([=] { return decoding(lattice(f, {5, heads, 40000, 2048}, 34), 1, 3); });
    cases.push_back([=] { return decoding(gaussian(f, {6, heads, 65536, 2048}, 35), 2, 4); });
  }
  cases.push_back([=] { return decoding(gaussian(f, {1, 32, 200704, 2048}, 36), 1, 5); });
  // A row in two stretches (ordered_row.cuh).
  cases.push_back([=] { return decoding(gaussian(f, {2, 32, 300000, 2048}, 56), 1, 10); });
  // Short ranges of 132 pieces, of which those that have keys have 64, and list all of them.
  for (const int keys : {53 * 64, 56 * 64, 59 * 64, 63 * 64}) {
    cases.push_back([=] {
      Problem p = gaussian(f, {1, 32, 200704, 2048}, 55);
      p.end[0] = keys;
      p.name += " of which " + std::to_string(keys);
      return decoding(p, 1, 9);
    });
  }
  cases.push_back([=] { return decoding(gaussian(f, {300, 32, 700, 64}, 37), 1, 6); });
  for (const KeyLengths& lengths : hard_lengths(60000)) {
    for (const int tokens : {1, 2}) {
      cases.push_back([=] {
        return decoding(with_lengths(f, {tokens, 32, 60000, 2048}, lengths), tokens, 1);
      });
    }
  }
  cases.push_back([=] {
    Problem p = decoding(gaussian(f, {2, 32, 40 * 64, 500}, 38), 2, 7);
    p.page_stride = std::int64_t{1} << 27;  // offsets beyond 4 GiB
    p.name = "far pages " + p.name;
    return p;
  });
  cases.push_back([=] {
    Problem p = gaussian(f, {3, 32, 100000, 2048}, 39);
    p.scale.assign(p.keys, 1.0f);
    shape_keys(p, "constant", [](int) { return 1.0f; });
    return decoding(p, 1, 8);
  });
  return cases;
}

// Every layout of the kernel: in pieces, and whole, then from the sample or, where there are seeds, from
// those to the rows.
std::vector<Make> layout_cases() {
  constexpr int kKeys = kShortRange + 180, kBest = 64;
  std::vector<Make> cases;
  const auto e4m3 = IndexKeyFormat::kE4M3, bf16 = IndexKeyFormat::kBFloat16;
  const auto add = [&](IndexKeyFormat format, int heads, bool paged) {
    for (const bool seeded : {false, true}) {
      cases.push_back([=] {
        Problem p = gaussian(format, {9, heads, kKeys, kBest}, 51);
        p.paged = paged;
        if (paged) p.name = "pages " + p.name;
        if (!seeded) return p;
        p.name = "seeds " + p.name;
        for (int i = 0; i < 9 * kBest; ++i) p.seeds.push_back(i * 7919 % kKeys);
        return p;
      });
    }
  };
  for (const int heads : {16, 32, 64}) {
    add(e4m3, heads, false);
    add(e4m3, heads, true);
    if (heads == 16) continue;
    add(bf16, heads, false);
    for (const int tokens : {1, 2, 4}) {
      cases.push_back([=] {
        return decoding(gaussian(e4m3, {tokens * 2, heads, kKeys, kBest}, 54), tokens, 9);
      });
    }
  }
  return cases;
}

std::vector<Make> large_cases() {
  std::vector<Make> cases;
  for (const IndexKeyFormat f : {IndexKeyFormat::kE4M3, IndexKeyFormat::kBFloat16}) {
    for (const int heads : {32, 64, 16}) {
      cases.push_back([=] { return lattice(f, {40, heads, 30011, 2048}, 6); });
      cases.push_back([=] {
        Problem p = gaussian(f, {67, heads, 50000, 2048}, 7);
        make_causal(p);
        return p;
      });
    }
    cases.push_back([=] { return gaussian(f, {24, 32, 200704, 2048}, 8); });
    cases.push_back([=] { return gaussian(f, {16, 32, 200704, 64}, 9); });
    cases.push_back([=] {
      Problem p = lattice(f, {50, 32, 40000, 1000}, 10);
      make_ragged(p, 5);
      return p;
    });
    for (const KeyLengths& lengths : hard_lengths(60000)) {
      cases.push_back([=] { return with_lengths(f, {16, 32, 60000, 2048}, lengths); });
    }
    cases.push_back([=] {
      Problem p = gaussian(f, {16, 32, 30000, 2048}, 12);
      p.name = "NaN keys " + p.name;
      for (int s = 0; s < p.keys; s += 3) p.k[std::size_t{128} * s + s % 128] = kNaN;
      return p;
    });
    cases.push_back([=] {
      Problem p = gaussian(f, {16, 20, 9000, 2048}, 13);
      p.name = "mostly NaN, infinite weights " + p.name;
      for (int s = 0; s < p.keys; ++s) {
        if (s % 9 != 0) p.k[std::size_t{128} * s] = kNaN;
      }
      for (int t = 0; t < p.queries; t += 3) {
        p.weights[std::size_t(t) * p.heads] =
            (t % 2 ? -1.0f : 1.0f) * std::numeric_limits<float>::infinity();
      }
      return p;
    });
  }
  cases.push_back([] {
    Problem p = gaussian(IndexKeyFormat::kBFloat16, {16, 20, 9000, 512}, 14);
    p.name = "infinite keys " + p.name;
    for (int s = 0; s < p.keys; s += 50) {
      p.k[std::size_t{128} * s] = (s % 100 ? -1.0f : 1.0f) * std::numeric_limits<float>::infinity();
    }
    return p;
  });
  return cases;
}

}  // namespace
}  // namespace indexcache::testing

int main(int argc, char** argv) {
  using namespace indexcache::testing;
  using indexcache::IndexKeyFormat;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return 77;  // skipped
  const std::string option = argc > 1 && argv[1][0] == '-' ? argv[1] : "";
  const std::string part = argc > 1 + !option.empty() ? argv[1 + !option.empty()] : "";
  const bool small = !option.empty(), layouts = option == "--layouts";
  const Effort effort = layouts ? Effort{0, {Blocks::kOne}, 1}
                                : Effort{small ? 1 : 20, {Blocks::kOne, Blocks::kTwo}, 2};
  std::vector<Make> cases = layouts ? layout_cases() : small_cases();
  if (!layouts) {
    for (Make& make : decode_cases(small)) cases.push_back(std::move(make));
  }
  if (!small) {
    for (Make& make : large_cases()) cases.push_back(std::move(make));
  }
  int run = 0, failed = 0;
  for (const Make& make : cases) {
    const Problem p = make();
    if (p.name.find(part) == std::string::npos) continue;
    ++run;
    failed += !passes(p, effort);
  }
  if (part.empty() && !layouts) {
    for (const int heads : {1, 16, 20, 32, 48, 64}) {
      run += 2;
      failed += !same_bits(IndexKeyFormat::kE4M3, heads);
      failed += !same_bits(IndexKeyFormat::kBFloat16, heads);
    }
  }
  std::printf("index_topk on the device: %d cases, %d failed\n", run, failed);
  return failed > 0 || run == 0 ? 1 : 0;
}
