// What this machine is and what it can still give, as Linux tells it in files below `root`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace indexcache {

// The model name in /proc/cpuinfo; "unknown" where there is none.
std::string cpu_name(const std::filesystem::path& root = "/");

// Bytes that a process can still take: MemAvailable of /proc/meminfo or, where that is less, what the
// limits of the process's cgroups (version 2: its own and those above it) leave. Pages of files do
// not count as taken, since they are dropped first. The largest int64 where nothing can be read.
std::int64_t available_memory_bytes(const std::filesystem::path& root = "/");

}  // namespace indexcache
