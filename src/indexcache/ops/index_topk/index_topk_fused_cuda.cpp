#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/index_topk/index_topk_fused.h"

namespace indexcache {

at::Tensor index_topk_fused(IndexTopkCudaParams params, const c10::Device& device) {
  const c10::DeviceGuard guard(device);
  const IndexTopkPlan plan = plan_index_topk(params, multiprocessors(device));
  const auto options = at::TensorOptions(device);
  at::Tensor out = at::empty({params.num_queries, params.top_k}, options.dtype(at::kInt));
  const at::Tensor workspace = at::empty({plan.workspace_bytes}, options.dtype(at::kByte));
  const at::Tensor counters = at::zeros({plan.counter_bytes}, options.dtype(at::kByte));
  params.out = out.mutable_data_ptr<std::int32_t>();
  params.workspace = workspace.mutable_data_ptr();
  params.workspace_bytes = plan.workspace_bytes;
  params.counters = counters.mutable_data_ptr();
  index_topk_cuda(params, plan, current_stream(device));
  return out;
}

}  // namespace indexcache
