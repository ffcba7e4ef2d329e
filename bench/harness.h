// Timing of kernels beside the limits of the machine, measured in the same run.
//
// Machines are shared and clocks move, so a case and its limits are timed in turn, round after
// round; every figure is the median over the rounds with the quartiles beside it, and a case's
// share is its median rate over its roof:
//   roof = min(matmul rate of libtorch at the case's dtype, flops per byte * copy bandwidth).
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

namespace indexcache::bench {

struct Timing {
  double median = 0, low_quartile = 0, high_quartile = 0;  // seconds
};

inline Timing summarise(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto at = [&](double share) {
    return seconds[static_cast<std::size_t>(share * (seconds.size() - 1) + 0.5)];
  };
  return {at(0.5), at(0.25), at(0.75)};
}

inline double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// One call, or as many as fill `least` seconds: seconds a call.
inline double time_call(const std::function<void()>& call, clockid_t clock, double least) {
  const double begin = seconds_of(clock);
  double elapsed = 0;
  int calls = 0;
  do {
    call();
    ++calls;
    elapsed = seconds_of(clock) - begin;
  } while (elapsed < least);
  return elapsed / calls;
}

// Times the calls in turn, `rounds` times after one warm-up each.
inline std::vector<Timing> time_interleaved(const std::vector<std::function<void()>>& calls,
                                            clockid_t clock, int rounds, double least) {
  std::vector<std::vector<double>> seconds(calls.size());
  for (const auto& call : calls) call();
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < calls.size(); ++i)
      seconds[i].push_back(time_call(calls[i], clock, least));
  }
  std::vector<Timing> timings;
  for (auto& each : seconds) timings.push_back(summarise(std::move(each)));
  return timings;
}

struct Case {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  double flops = 0, bytes = 0;  // bytes that must come from memory at least once
  std::function<void()> run;
  std::function<void()> other;  // what a user would run instead, same result; may be empty
};

class Suite {
 public:
  // argv: --json FILE, --rounds N, --filter TEXT, --threads N, --clock wall|cpu.
  Suite(std::string name, int argc, char** argv) : name_(std::move(name)) {
    report_ = provenance(name_, argc, argv);
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string option = argv[i], value = argv[i + 1];
      if (option == "--json") json_path_ = value;
      if (option == "--rounds") rounds_ = std::stoi(value);
      if (option == "--filter") filter_ = value;
      if (option == "--clock" && value == "cpu") clock_ = CLOCK_PROCESS_CPUTIME_ID;
      if (option == "--threads") at::set_num_threads(std::stoi(value));
    }
    fmt::print("{} on {}, {} threads\n", name_, cpu_name(), at::get_num_threads());
    fmt::print("{:44} {:>10} {:>15} {:>9} {:>9} {:>9} {:>6} {:>8}\n", "case", "ms", "(quartiles)",
               "GFLOP/s", "matmul", "roof", "share", "other ms");
  }

  // Builds the case only if the filter wants it.
  void add(const std::string& name, const std::function<Case()>& build) {
    if (name.find(filter_) == std::string::npos) return;
    Case c = build();
    c.name = name;
    measure(c);
  }

  void write() const {
    if (json_path_.empty()) return;
    nlohmann::ordered_json report = report_;
    report["threads"] = at::get_num_threads();
    report["clock"] = clock_ == CLOCK_MONOTONIC ? "wall" : "cpu";
    report["rounds"] = rounds_;
    report["cases"] = cases_;
    std::ofstream(json_path_) << report.dump(1) << "\n";
  }

 private:
  void measure(const Case& c) {
    constexpr std::int64_t kSize = 2048;
    constexpr std::int64_t kCopyFloats = std::int64_t{1} << 26;  // beyond any cache
    const at::Tensor a = at::randn({kSize, kSize}).to(c.dtype);
    const at::Tensor b = at::randn({kSize, kSize}).to(c.dtype);
    const at::Tensor from = at::randn({kCopyFloats});
    const at::Tensor to = from.clone();
    std::vector<std::function<void()>> calls = {[&] { at::matmul(a, b); }, [&] { to.copy_(from); },
                                                c.run};
    if (c.other) calls.push_back(c.other);
    const std::vector<Timing> times = time_interleaved(calls, clock_, rounds_, 0.05);
    const double matmul = 2.0 * kSize * kSize * kSize / times[0].median;
    const double copy = 2.0 * 4 * kCopyFloats / times[1].median;
    const double roof = std::min(matmul, c.flops / c.bytes * copy);
    const double rate = c.flops / times[2].median;
    fmt::print(
        "{:44} {:>10.3f} {:>15} {:>9.1f} {:>9.1f} {:>9.1f} {:>6.2f} {:>8}\n", c.name,
        times[2].median * 1e3,
        fmt::format("{:.2f}-{:.2f}", times[2].low_quartile * 1e3, times[2].high_quartile * 1e3),
        rate / 1e9, matmul / 1e9, roof / 1e9, rate / roof,
        c.other ? fmt::format("{:.1f}", times[3].median * 1e3) : "-");
    std::fflush(stdout);
    nlohmann::ordered_json entry = {
        {"case", c.name},
        {"flops", c.flops},
        {"bytes", c.bytes},
        {"seconds", times[2].median},
        {"seconds_quartiles", {times[2].low_quartile, times[2].high_quartile}},
        {"gflops", rate / 1e9},
        {"matmul_gflops", matmul / 1e9},
        {"copy_gbytes", copy / 1e9},
        {"roof_gflops", roof / 1e9},
        {"share_of_roof", rate / roof}};
    if (c.other) entry["libtorch_seconds"] = times[3].median;
    cases_.push_back(std::move(entry));
  }

  std::string name_, json_path_, filter_;
  nlohmann::ordered_json report_;  // its head
  clockid_t clock_ = CLOCK_MONOTONIC;
  int rounds_ = 9;
  nlohmann::ordered_json cases_ = nlohmann::ordered_json::array();
};

}  // namespace indexcache::bench
