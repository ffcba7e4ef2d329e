#include "indexcache/ops/latent_append/latent_append.h"

#include <c10/core/DeviceGuard.h>
#include <c10/util/StringUtil.h>

#include "indexcache/base/error.h"
#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/index_cache.h"
#include "indexcache/ops/latent_append/latent_append_params.h"
#include "indexcache/ops/tensor_check.h"
#include "indexcache/ops/torch_pool.h"

namespace indexcache {
namespace {

void check_rows(const at::Tensor& rows, const char* where, std::int64_t width,
                const at::Tensor& latents) {
  require_tensor(rows.dim() == 2 && rows.size(0) == latents.size(0) && rows.size(1) == width &&
                     rows.scalar_type() == at::kBFloat16 && rows.device() == latents.device() &&
                     rows.stride(1) == 1 && (rows.size(0) <= 1 || rows.stride(0) % 8 == 0) &&
                     aligned_to_16(rows),
                 where,
                 fmt::format("bf16 [{}, {}] on the latents' device, rows at multiples of 16 bytes",
                             latents.size(0), width),
                 rows);
}

LatentFormat check_pages(const at::Tensor& pages, const at::Tensor& latents) {
  const bool bf16 = pages.scalar_type() == at::kBFloat16;
  const auto format = bf16 ? LatentFormat::kBFloat16 : LatentFormat::kE4M3;
  const std::int64_t element = bf16 ? 2 : 1;
  const auto fits = [&](int dim) {
    return pages.size(dim) <= 1 || pages.stride(dim) * element % 16 == 0;
  };
  require_tensor(
      pages.dim() == 3 && (bf16 || pages.scalar_type() == at::kByte) && pages.size(1) >= 1 &&
          pages.size(2) * element >= latent_row_bytes(format) && pages.stride(2) == 1 && fits(0) &&
          fits(1) && aligned_to_16(pages) && pages.device() == latents.device(),
      "latent_append: pages",
      "bf16 [P, S, at least 576] or uint8 [P, S, at least 656] on the latents' device, rows "
      "at multiples of 16 bytes",
      pages);
  return format;
}

}  // namespace

void latent_append(const at::Tensor& latents, const at::Tensor& rope_keys, const at::Tensor& slots,
                   const at::Tensor& pages, ScaleFormat scale, double amax_floor) {
  require_tensor(latents.dim() == 2, "latent_append: latents", "[M, 512]", latents);
  check_rows(latents, "latent_append: latents", kLatentDim, latents);
  check_rows(rope_keys, "latent_append: rope_keys", kRopeDim, latents);
  LatentAppendParams params;
  params.format = check_pages(pages, latents);
  params.num_tokens = latents.size(0);
  params.latents = latents.const_data_ptr();
  params.latent_stride = latents.stride(0);
  params.rope_keys = rope_keys.const_data_ptr();
  params.rope_stride = rope_keys.stride(0);
  params.num_pages = pages.size(0);
  params.page_keys = pages.size(1);
  params.slots = check_slots("latent_append", slots, params.num_pages * params.page_keys, latents);
  params.scale = scale;
  params.amax_floor = check_amax_floor("latent_append", amax_floor);
  params.pages = pages.mutable_data_ptr();
  params.page_stride = pages.stride(0) * pages.element_size();
  params.row_stride = pages.stride(1) * pages.element_size();
  if (latents.is_cpu()) return latent_append_cpu(params, torch_pool());
#ifdef INDEXCACHE_CUDA
  if (latents.is_cuda()) {
    const c10::DeviceGuard guard(latents.device());
    return latent_append_cuda(params, current_stream(latents.device()));
  }
#endif
  throw expectation_error("latent_append: latents", "CPU or CUDA tensors",
                          c10::str(latents.device()));
}

}  // namespace indexcache
