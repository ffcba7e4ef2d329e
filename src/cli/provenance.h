// Where a measurement comes from, for the JSON files that hold it.
#pragma once

#include <c10/core/Device.h>

#include <nlohmann/json.hpp>

namespace indexcache::cli {

// {"command": the command line, "commit": of the build, "machine": {"cpu", "cores", "memory_gib",
// "threads" and, if it was measured there, "gpu"}}.
nlohmann::json provenance(const at::Device& device);

}  // namespace indexcache::cli
