#include "indexcache/ops/sparse_mla/sparse_mla.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/max.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include "indexcache/base/error.h"
#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/sparse_mla/sparse_mla_params.h"
#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"
#include "indexcache/ops/tensor_check.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {
namespace {

#ifdef INDEXCACHE_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

void validate(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& indices,
              std::int64_t value_dim) {
  require_tensor(q.dim() == 3 && q.is_contiguous() && q.size(1) > 0 && q.size(2) > 0 &&
                     (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16),
                 "sparse_mla: q", "a contiguous fp32 or bf16 tensor [M, h, dim] with h, dim >= 1",
                 q);
  require_tensor(kv.dim() == 2 && kv.size(1) == q.size(2) && kv.scalar_type() == q.scalar_type() &&
                     kv.device() == q.device() && (kv.size(1) == 1 || kv.stride(1) == 1),
                 "sparse_mla: kv",
                 fmt::format("[N, {}] with contiguous rows, dtype and device of q", q.size(2)), kv);
  require_tensor(indices.dim() == 2 && indices.size(0) == q.size(0) &&
                     indices.scalar_type() == at::kInt && indices.device() == q.device() &&
                     indices.is_contiguous(),
                 "sparse_mla: indices",
                 fmt::format("contiguous int32 [{}, k] on q's device", q.size(0)), indices);
  if (value_dim < 1 || value_dim > q.size(2)) {
    throw expectation_error("sparse_mla: value_dim", fmt::format("1 to {}", q.size(2)),
                            std::to_string(value_dim));
  }
  if (indices.is_cpu() && indices.numel() > 0) {  // elsewhere it would wait for the device
    const std::int64_t largest = at::max(indices).item<std::int64_t>();
    if (largest >= kv.size(0)) {
      throw expectation_error("sparse_mla: indices", fmt::format("rows below {}", kv.size(0)),
                              std::to_string(largest));
    }
  }
  if (c10::GradMode::is_enabled() && (q.requires_grad() || kv.requires_grad())) {
    throw InputError("sparse_mla: has no gradient, but q or kv requires one");
  }
}

}  // namespace

SparseMlaResult sparse_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& indices,
                           std::int64_t value_dim, double softmax_scale) {
  validate(q, kv, indices, value_dim);
  const bool has_kernel = q.is_cpu() || (kHasCuda && q.is_cuda());
  if (!has_kernel) return sparse_mla_torch(q, kv, indices, value_dim, softmax_scale);

  SparseMlaResult result{at::empty({q.size(0), q.size(1), value_dim}, q.options()),
                         at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat))};
  SparseMlaParams params;
  params.num_queries = q.size(0);
  params.num_heads = q.size(1);
  params.dim = q.size(2);
  params.value_dim = value_dim;
  params.num_keys = kv.size(0);
  params.top_k = indices.size(1);
  params.softmax_scale = static_cast<float>(softmax_scale);
  params.dtype =
      q.scalar_type() == at::kFloat ? SparseMlaDType::kFloat32 : SparseMlaDType::kBFloat16;
  params.q = q.const_data_ptr();
  params.kv = kv.const_data_ptr();
  params.kv_stride = kv.stride(0);
  params.indices = indices.const_data_ptr<std::int32_t>();
  params.out = result.out.mutable_data_ptr();
  params.lse = result.lse.mutable_data_ptr<float>();
#ifdef INDEXCACHE_CUDA
  if (q.is_cuda()) {
    const c10::DeviceGuard guard(q.device());
    if (auto wgmma = wgmma_params(params)) {
      const at::Tensor workspace =
          at::empty({sparse_mla_wgmma_workspace(*wgmma)}, q.options().dtype(at::kByte));
      wgmma->workspace = workspace.mutable_data_ptr();
      sparse_mla_wgmma_cuda(*wgmma, current_stream(q.device()));
    } else {
      sparse_mla_simt_cuda(params, current_stream(q.device()));
    }
    return result;
  }
#endif
  sparse_mla_cpu(params, torch_pool());
  return result;
}

}  // namespace indexcache
