// Where and how a measurement was made: what the head of each bench's JSON says.
#pragma once

#include <fmt/format.h>
#include <sys/utsname.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace indexcache::bench {

// As /proc/cpuinfo names it.
inline std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

inline nlohmann::ordered_json provenance(const std::string& bench, int argc, char** argv) {
  utsname system{};
  uname(&system);
  return {{"bench", bench},
          {"machine", cpu_name()},
          {"kernel", system.release},
          {"commit", INDEXCACHE_COMMIT},
          {"command", fmt::format("{}", fmt::join(argv, argv + argc, " "))}};
}

}  // namespace indexcache::bench
