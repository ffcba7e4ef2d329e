// Where a measurement comes from, for the JSON files that hold it.
#pragma once

#include <c10/core/Device.h>

#include <nlohmann/json.hpp>
#include <string>

namespace indexcache::cli {

// Of the build: a short hash, "-dirty" after it if sources had changed; "unknown" outside a checkout.
std::string commit();

// {"command": the command line, "commit": of the build, "machine": {"cpu", "cores", "memory_gib",
// "threads" and, if it was measured there, "gpu"}}.
nlohmann::json provenance(const at::Device& device);

}  // namespace indexcache::cli
