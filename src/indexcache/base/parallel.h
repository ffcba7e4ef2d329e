// How a kernel runs on several threads without knowing whose they are.
#pragma once

#include <functional>

namespace indexcache {

// run(body) calls body(worker) once for each worker in [0, num_workers), concurrently, and returns
// when all have. The tensor-facing op passes libtorch's pool, so that one process has one pool.
struct Parallel {
  int num_workers = 1;
  std::function<void(const std::function<void(int worker)>& body)> run =
      [](const std::function<void(int)>& body) { body(0); };
};

}  // namespace indexcache
