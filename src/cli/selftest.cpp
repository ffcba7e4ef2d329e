// indexcache selftest: every op against its reference on this machine.
#include "indexcache/selftest/selftest.h"

#include <ATen/Context.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/verbs.h"
#include "indexcache/base/error.h"

namespace indexcache::cli {

void add_selftest(CLI::App& app) {
  auto* verb =
      app.add_subcommand("selftest", "Check every op against its reference on this machine");
  auto device = std::make_shared<std::string>("cpu");
  verb->add_option("--device", *device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  verb->callback([device] {
    if (*device == "cuda" && !at::hasCUDA()) {
      throw expectation_error("--device", "a machine and a build with CUDA", "none");
    }
    const auto results = run_selftest(
        at::Device(*device == "cuda" ? at::kCUDA : at::kCPU), [](const SelfTestCase& result) {
          fmt::print("{}  {}: {}{}\n", result.failure.empty() ? "ok  " : "FAIL", result.op,
                     result.name, result.failure.empty() ? "" : "\n      " + result.failure);
        });
    const auto failed = std::count_if(results.begin(), results.end(),
                                      [](const auto& result) { return !result.failure.empty(); });
    fmt::print("{} cases, {} failed\n", results.size(), failed);
    if (failed > 0) throw device_error("selftest: {} cases failed on {}", failed, *device);
  });
}

}  // namespace indexcache::cli
