#include "cli/provenance.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "commit.h"  // generated: INDEXCACHE_COMMIT
#include "indexcache/base/machine.h"
#include "indexcache/ops/cuda_device.h"

namespace indexcache::cli {
namespace {

std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!text.empty() && text.back() == '\0') text.pop_back();
  for (char& c : text) {
    if (c == '\0') c = ' ';
  }
  // The program's name alone: where it was built says nothing.
  const auto end = text.find(' ');
  const auto slash = text.rfind('/', end);
  return slash == text.npos ? text : text.substr(slash + 1);
}

}  // namespace

std::string commit() { return INDEXCACHE_COMMIT; }

nlohmann::json provenance(const at::Device& device) {
  const double bytes =
      static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  nlohmann::json machine = {{"cpu", cpu_name()},
                            {"cores", std::thread::hardware_concurrency()},
                            {"memory_gib", static_cast<int>(bytes / (1 << 30) + 0.5)},
                            {"threads", at::get_num_threads()}};
  if (!device.is_cpu()) machine["gpu"] = device_name(device);
  return {{"command", command_line()}, {"commit", commit()}, {"machine", machine}};
}

}  // namespace indexcache::cli
