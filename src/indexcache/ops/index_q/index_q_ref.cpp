#include "indexcache/ops/index_q/index_q_params.h"

namespace indexcache {

void index_q_ref(const IndexQParams& p, double* rows) {
  for (std::int64_t t = 0; t < p.num_tokens; ++t) {
    for (std::int64_t h = 0; h < p.num_heads; ++h) {
      const std::int64_t row = t * p.num_heads + h;
      double values[kIndexDim];
      read_index_row(p.q, p.dtype, row, values);
      rotate_index_row_ref(values, p.rope.of(t), p.type, rows + row * kIndexDim);
    }
  }
}

}  // namespace indexcache
