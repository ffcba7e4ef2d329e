// Where and how a measurement was made: what the head of each bench's JSON says.
#pragma once

#include <fmt/format.h>
#include <sys/utsname.h>

#include <nlohmann/json.hpp>
#include <string>

#include "indexcache/base/machine.h"

namespace indexcache::bench {

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
