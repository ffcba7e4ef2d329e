#include "indexcache/ops/index_k_append/index_k_append_params.h"

namespace indexcache {

void index_k_append_ref(const IndexKAppendParams& p, double* rows) {
  for (std::int64_t t = 0; t < p.num_tokens; ++t) {
    double values[kIndexDim];
    read_index_row(p.keys, p.dtype, t, values);
    rotate_index_row_ref(values, p.rope.of(t), p.type, rows + t * kIndexDim);
  }
}

}  // namespace indexcache
