// NCCL as c10d's backend. Only in a build with CUDA.
#pragma once

#include <chrono>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace indexcache {

// A backend whose works, when waited for, block until they are done and throw if one fails or takes
// longer than `timeout`. The peers find each other through `store`.
c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size,
                                                    std::chrono::milliseconds timeout);

}  // namespace indexcache
