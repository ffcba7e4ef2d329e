#include "indexcache/ops/torch_pool.h"

#include <ATen/Parallel.h>

#include <cstdint>

namespace indexcache {

Parallel torch_pool() {
  const int workers = at::get_num_threads();
  return {workers, [workers](const std::function<void(int)>& body) {
            at::parallel_for(0, workers, 1, [&](std::int64_t begin, std::int64_t end) {
              for (std::int64_t worker = begin; worker < end; ++worker) {
                body(static_cast<int>(worker));
              }
            });
          }};
}

}  // namespace indexcache
