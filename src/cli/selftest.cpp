// indexcache selftest: every op against its reference on this machine.
#include "indexcache/selftest/selftest.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "cli/provenance.h"
#include "cli/verbs.h"
#include "indexcache/base/error.h"

namespace indexcache::cli {
namespace {

struct SelftestArguments {
  std::string device = "cpu";
  bool json = false;
};

void print_case(const SelfTestCase& result) {
  fmt::print("{}  {}: {}{}\n", result.failure.empty() ? "ok  " : "FAIL", result.op, result.name,
             result.failure.empty() ? "" : "\n      " + result.failure);
}

nlohmann::json as_json(const at::Device& device, const std::vector<SelfTestCase>& results,
                       std::ptrdiff_t failed) {
  nlohmann::json cases = nlohmann::json::array();
  for (const auto& result : results) {
    cases.push_back({{"op", result.op},
                     {"name", result.name},
                     {"passed", result.failure.empty()},
                     {"worst_error_by_bound", result.worst},
                     {"failure", nullptr}});
    if (!result.failure.empty()) cases.back()["failure"] = result.failure;
  }
  return {{"device", device.str()},
          {"cases", cases},
          {"failed", failed},
          {"provenance", provenance(device)}};
}

void run(const SelftestArguments& arguments) {
  const auto device = parse_device(arguments.device);
  const auto results = run_selftest(device, [&](const SelfTestCase& result) {
    if (!arguments.json) print_case(result);
  });
  const auto failed = std::count_if(results.begin(), results.end(),
                                    [](const auto& result) { return !result.failure.empty(); });
  if (arguments.json) {
    fmt::print("{}\n", as_json(device, results, failed).dump(2));
  } else {
    fmt::print("{} cases, {} failed\n", results.size(), failed);
  }
  if (failed > 0) throw device_error("selftest: {} cases failed on {}", failed, arguments.device);
}

}  // namespace

void add_selftest(CLI::App& app) {
  auto* verb =
      app.add_subcommand("selftest", "Check every op against its reference on this machine");
  auto arguments = std::make_shared<SelftestArguments>();
  verb->add_option("--device", arguments->device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  verb->add_flag("--json", arguments->json, "for machines");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace indexcache::cli
