#define USE_C10D_NCCL  // the header is empty without it
#include <stdlib.h>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "indexcache/distributed/nccl_backend.h"

namespace indexcache {

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store,
                                                    int rank, int size,
                                                    std::chrono::milliseconds timeout) {
  // By default a watchdog thread ends the process with std::terminate when a peer is lost. With
  // blocking waits there is no such thread and the error is thrown where the work is waited for.
  // The backend's constructor takes this choice from the environment alone.
  ::setenv("TORCH_NCCL_BLOCKING_WAIT", "1", /*overwrite=*/1);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, std::move(options));
}

}  // namespace indexcache
