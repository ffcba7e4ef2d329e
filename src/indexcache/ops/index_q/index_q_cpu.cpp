#include <algorithm>

#include "indexcache/ops/index_q/index_q_params.h"

namespace indexcache {

void index_q_cpu(const IndexQParams& p, const Parallel& parallel) {
  parallel.run([&](int worker) {
    const std::int64_t share = (p.num_tokens + parallel.num_workers - 1) / parallel.num_workers;
    const std::int64_t end = std::min(p.num_tokens, (worker + 1) * share);
    for (std::int64_t t = worker * share; t < end; ++t) {
      for (std::int64_t row = t * p.num_heads; row < (t + 1) * p.num_heads; ++row) {
        float values[kIndexDim];
        read_index_row(p.q, p.dtype, row, values);
        rotate_index_row(values, p.rope.of(t), p.type);
        const float scale = store_e4m3_block(values, kIndexDim, p.type.scale, p.amax_floor,
                                             p.out + row * kIndexDim);
        p.out_weights[row] = p.weights[row] * scale * p.factor;
      }
    }
  });
}

}  // namespace indexcache
