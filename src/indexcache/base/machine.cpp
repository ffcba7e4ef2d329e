#include "indexcache/base/machine.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>

namespace indexcache {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

std::int64_t free_in_meminfo(const fs::path& root) {
  std::ifstream meminfo(root / "proc/meminfo");
  std::string key, unit;
  std::int64_t kibibytes = 0;
  while (meminfo >> key >> kibibytes) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") return kibibytes * 1024;
  }
  return kNoLimit;
}

// None for "max" too.
std::optional<std::int64_t> number_in(const fs::path& file) {
  std::ifstream stream(file);
  std::int64_t number = 0;
  return stream >> number ? std::optional(number) : std::nullopt;
}

std::int64_t file_pages_in(const fs::path& group) {
  std::ifstream stat(group / "memory.stat");
  std::string key;
  std::int64_t bytes = 0, sum = 0;
  while (stat >> key >> bytes) {
    if (key == "active_file" || key == "inactive_file") sum += bytes;
  }
  return sum;
}

std::int64_t left_in(const fs::path& group) {
  const auto limit = number_in(group / "memory.max"), taken = number_in(group / "memory.current");
  if (!limit || !taken) return kNoLimit;
  const auto held = std::max<std::int64_t>(0, *taken - file_pages_in(group));
  return std::max<std::int64_t>(0, *limit - held);
}

// The process's cgroup, as a path below the place where cgroups are mounted. Empty for that place
// itself, and for a group that lies outside of what this process can see.
fs::path own_cgroup(const fs::path& root) {
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    if (!line.starts_with("0::/")) continue;  // of version 1
    const auto path = fs::path(line.substr(4));
    return std::find(path.begin(), path.end(), "..") == path.end() ? path : fs::path();
  }
  return {};
}

}  // namespace

std::string cpu_name(const fs::path& root) {
  std::ifstream cpuinfo(root / "proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != line.npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::int64_t available_memory_bytes(const fs::path& root) {
  auto available = free_in_meminfo(root);
  for (auto group = own_cgroup(root);; group = group.parent_path()) {
    available = std::min(available, left_in(root / "sys/fs/cgroup" / group));
    if (group.empty()) return available;
  }
}

}  // namespace indexcache
