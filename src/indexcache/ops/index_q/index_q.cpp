#include "indexcache/ops/index_q/index_q.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/StringUtil.h>

#include <cmath>

#include "indexcache/base/error.h"
#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/index_q/index_q_params.h"
#include "indexcache/ops/tensor_check.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {

IndexQueries index_q(const at::Tensor& q, const at::Tensor& weights, const at::Tensor& cos_sin,
                     const at::Tensor& positions, const IndexKeyType& type, double amax_floor) {
  require_tensor(q.dim() == 3 && q.size(1) >= 1 && q.size(2) == kIndexDim, "index_q: q",
                 "[M, H, 128] with H >= 1", q);
  require_tensor(weights.sizes() == q.sizes().slice(0, 2) && weights.scalar_type() == at::kFloat &&
                     weights.is_contiguous() && weights.device() == q.device(),
                 "index_q: weights",
                 fmt::format("contiguous fp32 [{}, {}] on q's device", q.size(0), q.size(1)),
                 weights);
  IndexQParams params;
  params.num_tokens = q.size(0);
  params.num_heads = q.size(1);
  params.dtype = check_index_rows("index_q", q);
  params.q = q.const_data_ptr();
  params.weights = weights.const_data_ptr<float>();
  params.rope = check_rope("index_q", cos_sin, positions, q);
  params.type = type;
  params.amax_floor = check_amax_floor("index_q", amax_floor);
  params.factor = static_cast<float>(1 / std::sqrt(static_cast<double>(q.size(1) * kIndexDim)));
  IndexQueries result{at::empty(q.sizes(), q.options().dtype(at::kFloat8_e4m3fn)),
                      at::empty(weights.sizes(), weights.options()), type};
  params.out = static_cast<std::uint8_t*>(result.q.mutable_data_ptr());
  params.out_weights = result.weights.mutable_data_ptr<float>();
  if (q.is_cpu()) {
    index_q_cpu(params, torch_pool());
    return result;
  }
#ifdef INDEXCACHE_CUDA
  if (q.is_cuda()) {
    const c10::DeviceGuard guard(q.device());
    index_q_cuda(params, current_stream(q.device()));
    return result;
  }
#endif
  throw expectation_error("index_q: q", "a CPU or CUDA tensor", c10::str(q.device()));
}

}  // namespace indexcache
