// Where a measurement comes from, for the JSON files that hold it.
#pragma once

#include <nlohmann/json.hpp>

namespace indexcache::cli {

// {"command": the command line, "commit": of the build, "machine": {"cpu", "cores", "memory_gib",
// "threads"}}.
nlohmann::json provenance();

}  // namespace indexcache::cli
