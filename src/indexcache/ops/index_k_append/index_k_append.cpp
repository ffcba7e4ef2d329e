#include "indexcache/ops/index_k_append/index_k_append.h"

#include <c10/core/DeviceGuard.h>
#include <c10/util/StringUtil.h>

#include "indexcache/base/error.h"
#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/index_k_append/index_k_append_params.h"
#include "indexcache/ops/tensor_check.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {

void index_k_append(const at::Tensor& keys, const at::Tensor& cos_sin, const at::Tensor& positions,
                    const at::Tensor& slots, const IndexKeyPages& cache, double amax_floor) {
  require_tensor(keys.dim() == 2 && keys.size(1) == kIndexDim, "index_k_append: keys", "[M, 128]",
                 keys);
  check_index_pages("index_k_append", cache);
  require_tensor(cache.pages.device() == keys.device(), "index_k_append: pages",
                 "on the device of keys", cache.pages);
  IndexKAppendParams params;
  params.num_tokens = keys.size(0);
  params.dtype = check_index_rows("index_k_append", keys);
  params.keys = keys.const_data_ptr();
  params.rope = check_rope("index_k_append", cos_sin, positions, keys);
  params.num_pages = cache.pages.size(0);
  params.slots = check_slots("index_k_append", slots, params.num_pages * kIndexPageKeys, keys);
  params.type = cache.type;
  params.amax_floor = check_amax_floor("index_k_append", amax_floor);
  params.pages = cache.pages.mutable_data_ptr();
  params.page_stride = cache.pages.stride(0);
  if (keys.is_cpu()) return index_k_append_cpu(params, torch_pool());
#ifdef INDEXCACHE_CUDA
  if (keys.is_cuda()) {
    const c10::DeviceGuard guard(keys.device());
    return index_k_append_cuda(params, current_stream(keys.device()));
  }
#endif
  throw expectation_error("index_k_append: keys", "a CPU or CUDA tensor", c10::str(keys.device()));
}

}  // namespace indexcache
