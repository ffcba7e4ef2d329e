// Ranges in pieces on the GPU, where it is hardest: samples that mislead, lists that are too long together, pieces whose
// blocks have to wait for a multiprocessor, and calls of several shapes in the same memory. The result is that of one
// block. Prints a line per case; exits with 1 if any failed. usage: index_topk_pieces_device_test
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>

#include "support/index_topk_problems.h"

namespace indexcache::testing {
namespace {

constexpr IndexKeyFormat kFormat = IndexKeyFormat::kE4M3;

bool report(const std::string& name, bool passed, const std::string& note = "") {
  std::printf("%-60s %s %s\n", name.c_str(), passed ? "ok" : "FAILED", note.c_str());
  return passed;
}

// Whether a key may be of the sample that the pieces of a range from 0 on take: one key from each of equal strata, at
// a place that a hash draws (KeyWalk::scattered_key), in either of the layouts' two densities. If the kernel samples
// otherwise, the lists do not show what the cases below want, and they fail.
std::vector<bool> sampled_keys(int keys) {
  std::vector<bool> sampled(keys);
  for (const int share : {40, 64}) {
    const int count = std::min(keys / share, kMostShared), stratum = keys / count;
    for (int i = 0; i < count; ++i) {
      std::uint32_t hash = static_cast<std::uint32_t>(i) * 0x9E3779B1u;
      hash = (hash ^ hash >> 15) * 0x85EBCA77u;
      hash ^= hash >> 13;
      const auto within = static_cast<int>(std::uint64_t{hash} * stratum >> 32);
      sampled[keys - stratum * count + i * stratum + within] = true;
    }
  }
  return sampled;
}

// Keys whose scores are those of one dense key each time, scaled: the sampled ones by `sampled`, others by about 1.
Problem misleading(int tokens, int keys, float sampled) {
  Problem p = gaussian(kFormat, {tokens, 32, keys, 2048}, 61);
  for (float& weight : p.weights) weight = std::abs(weight);
  p.scale.assign(keys, 1.0f);
  const std::vector<bool> is_sampled = sampled_keys(keys);
  shape_keys(p, sampled > 1 ? "the sampled are the best" : "the sampled are the worst",
             [&](int s) { return is_sampled[s] ? sampled : 1.0f + 0.01f * (s % 50); });
  p.tokens = tokens;
  p.paged = true;
  p.encode();
  return p;
}

std::vector<std::int32_t> by_one_block(const Problem& p) {
  return DeviceProblem(p, Blocks::kOne).run();
}

// The threshold lets through too few, and the last block walks all keys.
bool misled(int tokens) {
  const Problem p = misleading(tokens, 60000, 3.0f);
  DeviceProblem all(p);
  std::vector<std::int32_t> counts;
  const auto expected = by_one_block(p);
  bool passed = all.run(nullptr, &counts) == expected && all.run() == expected && all.intact();
  for (int t = 0; t < tokens; ++t) passed = passed && counts[2 * t + 1] >= 1;
  return report(p.name, passed, "walked again: " + std::to_string(counts[1]));
}

// It lets through nearly all, more than fit a list together.
bool flooded(int tokens) {
  const Problem p = misleading(tokens, 60000, 0.1f);
  DeviceProblem all(p), two(p, Blocks::kTwo);
  std::vector<std::int32_t> counts;
  const auto expected = by_one_block(p);
  bool passed = all.run(nullptr, &counts) == expected && two.run() == expected && all.intact();
  for (int t = 0; t < tokens; ++t) passed = passed && counts[2 * t] > kCandidateCapacity;
  return report(p.name, passed, "listed: " + std::to_string(counts[0]));
}

__global__ void occupy(const volatile int* released) {
  while (*released == 0) {
  }
}

// Most multiprocessors are taken by a kernel that ends when we are through: pieces cannot wait for each other.
bool crowded() {
  const Problem p = [] {
    Problem problem = gaussian(kFormat, {1, 32, 100000, 2048}, 62);
    problem.tokens = 1;
    problem.paged = true;
    problem.encode();
    return problem;
  }();
  const auto expected = by_one_block(p);
  DeviceProblem all(p);
  all.run();  // what a first launch loads
  int processors = 0;
  cuda_ok(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "attribute");
  constexpr int kBytes = 200 * 1024;  // of shared memory: one block a multiprocessor
  cuda_ok(cudaFuncSetAttribute(occupy, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "occupy");
  cudaStream_t stream;
  cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  int* released = nullptr;
  cuda_ok(cudaHostAlloc(&released, sizeof *released, cudaHostAllocMapped), "flag");
  *released = 0;
  occupy<<<processors - processors / 8, 32, kBytes, stream>>>(released);
  cuda_ok(cudaGetLastError(), "occupy");
  const bool same = all.run() == expected;
  *static_cast<volatile int*>(released) = 1;
  cuda_ok(cudaStreamSynchronize(stream), "occupy");
  const bool again = all.run() == expected;
  cudaStreamDestroy(stream);
  cudaFreeHost(released);
  return report("an eighth of the multiprocessors " + p.name, same && again && all.intact());
}

// One workspace and one set of counters for calls of several shapes, one after the other.
bool shared_memory() {
  std::vector<Problem> problems;
  std::vector<std::vector<std::int32_t>> expected;
  for (const auto& [requests, tokens, keys] :
       {std::array{16, 1, 9000}, std::array{1, 1, 50000}, std::array{5, 2, 20000},
        std::array{2, 4, 7000}, std::array{1, 1, 3000}}) {
    Problem p = gaussian(kFormat, {requests * tokens, 32, requests * keys, 1000}, 63);
    p.keys = keys;
    p.end.assign(p.queries, keys);
    p.tokens = tokens;
    p.paged = true;
    p.encode();
    problems.push_back(p);
    expected.push_back(by_one_block(p));
  }
  std::vector<std::unique_ptr<DeviceProblem>> on_device;
  for (const Problem& p : problems) on_device.push_back(std::make_unique<DeviceProblem>(p));
  const Problem largest = [] {
    Problem p = gaussian(kFormat, {264, 32, 600, 16}, 64);
    p.tokens = 4;
    p.encode();
    return p;
  }();
  DeviceProblem memory(largest);
  for (auto& problem : on_device) problem->use_memory_of(memory);
  bool passed = true;
  for (int round = 0; round < 6; ++round) {
    for (std::size_t i = 0; i < on_device.size(); ++i) {
      const std::size_t at = round % 2 ? on_device.size() - 1 - i : i;
      passed = passed && on_device[at]->run() == expected[at];
    }
  }
  return report("calls of five shapes in the same memory", passed && memory.intact());
}

}  // namespace
}  // namespace indexcache::testing

int main() {
  using namespace indexcache::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return 77;  // skipped
  bool passed = true;
  for (const int tokens : {1, 2, 4}) passed = misled(tokens) && passed;
  for (const int tokens : {1, 2, 4}) passed = flooded(tokens) && passed;
  passed = crowded() && passed;
  passed = shared_memory() && passed;
  std::printf("index_topk in pieces: %s\n", passed ? "all passed" : "FAILED");
  return passed ? 0 : 1;
}
