// Which process of a group this one is, as its launcher says.
#pragma once

#include <optional>

#include "indexcache/distributed/communicator.h"

namespace indexcache::cli {

// Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets for each process that it
// starts, LOCAL_RANK if it is there, and TORCHELASTIC_USE_AGENT_STORE, which it sets to "True" if it serves the meeting place
// itself. None of the first four: nullopt. Throws InputError naming the variable if some are
// missing or one is not as GroupPlace wants it.
std::optional<GroupPlace> group_from_environment();

}  // namespace indexcache::cli
