// libtorch's intra-op threads as a Parallel, so that one process has one pool.
#pragma once

#include "indexcache/base/parallel.h"

namespace indexcache {

// at::get_num_threads() workers, run by at::parallel_for.
Parallel torch_pool();

}  // namespace indexcache
