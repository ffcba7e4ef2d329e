// How much memory this machine can still give.
#pragma once

#include <cstdint>

namespace indexcache {

// MemAvailable of /proc/meminfo in bytes; the largest int64 where that cannot be read.
std::int64_t available_memory_bytes();

}  // namespace indexcache
