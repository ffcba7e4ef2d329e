#include "indexcache/ops/index_topk/index_topk_fp8.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/index_topk/index_topk_fused.h"
#include "indexcache/ops/tensor_check.h"

namespace indexcache {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

void check_queries(const char* op, const IndexQueries& queries, const at::Tensor& start,
                   const at::Tensor& end, std::int64_t k, const std::optional<at::Tensor>& seeds) {
  const at::Tensor &q = queries.q, &weights = queries.weights;
  const auto of = [&](const char* argument) { return fmt::format("{}: {}", op, argument); };
  require_tensor(q.dim() == 3 && q.size(1) >= 1 && q.size(2) == kIndexDim && q.size(0) <= kMost &&
                     q.scalar_type() == at::kFloat8_e4m3fn && q.is_contiguous() && aligned_to_16(q),
                 of("q").c_str(), "contiguous float8_e4m3fn [M, H, 128] with H >= 1", q);
  require_tensor(weights.sizes() == q.sizes().slice(0, 2) && weights.scalar_type() == at::kFloat &&
                     weights.is_contiguous() && weights.device() == q.device(),
                 of("weights").c_str(),
                 fmt::format("contiguous fp32 [{}, {}] on q's device", q.size(0), q.size(1)),
                 weights);
  for (const auto& [bound, name] : {std::pair{&start, "start"}, std::pair{&end, "end"}}) {
    require_tensor(
        bound->dim() == 1 && bound->size(0) == q.size(0) && bound->scalar_type() == at::kInt &&
            bound->is_contiguous() && bound->device() == q.device(),
        of(name).c_str(), fmt::format("contiguous int32 [{}] on q's device", q.size(0)), *bound);
  }
  if (seeds) {
    require_tensor(seeds->dim() == 2 && seeds->size(0) == q.size(0) && seeds->size(1) <= kMost &&
                       seeds->scalar_type() == at::kInt && seeds->device() == q.device() &&
                       (seeds->size(1) <= 1 || seeds->stride(1) == 1),
                   of("seeds").c_str(),
                   fmt::format("int32 [{}, k'] on q's device, rows contiguous", q.size(0)), *seeds);
  }
  if (k < 1 || k > kMost) {
    throw expectation_error(of("k"), fmt::format("1 to {}", kMost), std::to_string(k));
  }
}

[[noreturn]] void refuse_device(const char* op, const at::Tensor& q) {
  throw expectation_error(fmt::format("{}: q", op), "a CPU or CUDA tensor", c10::str(q.device()));
}

#ifdef INDEXCACHE_CUDA
IndexTopkCudaParams fused_params(const IndexQueries& queries, const at::Tensor& start,
                                 const at::Tensor& end, std::int64_t k,
                                 const std::optional<at::Tensor>& seeds) {
  IndexTopkCudaParams params = {
      .format = IndexKeyFormat::kE4M3,
      .num_queries = static_cast<std::int32_t>(queries.q.size(0)),
      .num_heads = static_cast<std::int32_t>(std::min(queries.q.size(1), kMost)),
      .top_k = static_cast<std::int32_t>(k),
      .q = queries.q.const_data_ptr(),
      .weights = queries.weights.const_data_ptr<float>(),
      .start = start.const_data_ptr<std::int32_t>(),
      .end = end.const_data_ptr<std::int32_t>()};
  if (seeds && seeds->size(1) > 0) {
    params.seeds = seeds->const_data_ptr<std::int32_t>();
    params.num_seeds = static_cast<std::int32_t>(seeds->size(1));
    params.seed_stride = seeds->stride(0);
  }
  return params;
}
#endif

// The keys of one request up to `count`, as fp32 with their scales in them.
at::Tensor widen_pages(const at::Tensor& pages, const at::Tensor& table_row, std::int64_t count) {
  const std::int64_t used = (count + kIndexPageKeys - 1) / kIndexPageKeys;
  const at::Tensor own = table_row.narrow(0, 0, used);
  for (std::int64_t i = 0; i < used; ++i) {
    const std::int32_t page = own.const_data_ptr<std::int32_t>()[i];
    if (page < 0 || page >= pages.size(0)) {
      throw expectation_error(fmt::format("index_topk_paged: block_table entry {}", i),
                              fmt::format("a page below {}", pages.size(0)), std::to_string(page));
    }
  }
  const at::Tensor bytes = pages.narrow(1, 0, kIndexPageBytes).index_select(0, own);
  const auto part = [&](std::int64_t first, std::int64_t size) {
    return bytes.narrow(1, first, size).contiguous();
  };
  const at::Tensor keys = part(0, index_scale_offset(0))
                              .view(at::kFloat8_e4m3fn)
                              .to(at::kFloat)
                              .view({used * kIndexPageKeys, kIndexDim});
  const at::Tensor scale = part(index_scale_offset(0), 4 * kIndexPageKeys)
                               .view(at::kFloat)
                               .view({used * kIndexPageKeys, 1});
  return (keys * scale).narrow(0, 0, count);
}

}  // namespace

at::Tensor index_topk_fp8(const IndexQueries& queries, const IndexKeyRows& keys,
                          const at::Tensor& start, const at::Tensor& end, std::int64_t k,
                          const std::optional<at::Tensor>& seeds) {
  const at::Tensor &q = queries.q, &rows = keys.keys;
  check_queries("index_topk_fp8", queries, start, end, k, seeds);
  check_same_type("index_topk_fp8", queries.type, keys.type);
  require_tensor(rows.dim() == 2 && rows.size(1) == kIndexDim && rows.size(0) <= kMost &&
                     rows.scalar_type() == at::kFloat8_e4m3fn && rows.device() == q.device() &&
                     rows.stride(1) == 1 &&
                     (rows.size(0) <= 1 || (rows.stride(0) % 16 == 0 && rows.stride(0) > 0)) &&
                     aligned_to_16(rows),
                 "index_topk_fp8: keys",
                 "float8_e4m3fn [N, 128] on q's device, rows at multiples of 16 bytes", rows);
  require_tensor(keys.scale.dim() == 1 && keys.scale.size(0) == rows.size(0) &&
                     keys.scale.scalar_type() == at::kFloat && keys.scale.is_contiguous() &&
                     keys.scale.device() == q.device(),
                 "index_topk_fp8: scale",
                 fmt::format("contiguous fp32 [{}] on q's device", rows.size(0)), keys.scale);
#ifdef INDEXCACHE_CUDA
  if (q.is_cuda()) {
    IndexTopkCudaParams params = fused_params(queries, start, end, k, seeds);
    params.num_keys = static_cast<std::int32_t>(rows.size(0));
    params.keys = rows.const_data_ptr();
    params.key_stride = rows.size(0) > 1 ? rows.stride(0) : kIndexDim;
    const at::Tensor scale = aligned_to_16(keys.scale) ? keys.scale : keys.scale.clone();
    params.key_scale = scale.const_data_ptr<float>();
    return index_topk_fused(params, q.device());
  }
#endif
  if (!q.is_cpu()) refuse_device("index_topk_fp8", q);
  return index_topk(q.to(at::kFloat), rows.to(at::kFloat) * keys.scale.unsqueeze(1),
                    queries.weights, start, end, k);
}

at::Tensor index_topk_paged(const IndexQueries& queries, const IndexKeyPages& cache,
                            const at::Tensor& block_table, const at::Tensor& start,
                            const at::Tensor& end, std::int64_t k, std::int64_t tokens_per_request,
                            const std::optional<at::Tensor>& seeds) {
  const at::Tensor& q = queries.q;
  check_queries("index_topk_paged", queries, start, end, k, seeds);
  check_same_type("index_topk_paged", queries.type, cache.type);
  check_index_pages("index_topk_paged", cache);
  require_tensor(cache.pages.device() == q.device(), "index_topk_paged: pages", "on q's device",
                 cache.pages);
  if (tokens_per_request < 0 || tokens_per_request > 4) {
    throw expectation_error("index_topk_paged: tokens_per_request", "0 to 4",
                            std::to_string(tokens_per_request));
  }
  const std::int64_t requests = tokens_per_request == 0 ? 1 : block_table.size(0);
  require_tensor(block_table.dim() == 2 && block_table.scalar_type() == at::kInt &&
                     block_table.device() == q.device() && block_table.size(0) >= requests &&
                     (tokens_per_request == 0 || requests * tokens_per_request == q.size(0)) &&
                     (block_table.size(1) <= 1 || block_table.stride(1) == 1) &&
                     block_table.size(1) <= kMost / kIndexPageKeys,
                 "index_topk_paged: block_table",
                 "int32 on q's device, a row with contiguous entries for each request",
                 block_table);
#ifdef INDEXCACHE_CUDA
  if (q.is_cuda()) {
    IndexTopkCudaParams params = fused_params(queries, start, end, k, seeds);
    const bool one_row = block_table.size(0) <= 1;
    params.num_keys = static_cast<std::int32_t>(kIndexPageKeys * block_table.size(1));
    params.keys = cache.pages.const_data_ptr();
    params.block_table = block_table.const_data_ptr<std::int32_t>();
    params.table_stride =
        static_cast<std::int32_t>(one_row ? block_table.size(1) : block_table.stride(0));
    params.page_stride = cache.pages.size(0) > 1 ? cache.pages.stride(0) : kIndexPageBytes;
    params.tokens_per_request = static_cast<std::int32_t>(tokens_per_request);
    return index_topk_fused(params, q.device());
  }
#endif
  if (!q.is_cpu()) refuse_device("index_topk_paged", q);
  const std::int64_t tokens = tokens_per_request == 0 ? q.size(0) : tokens_per_request;
  at::Tensor out = at::empty({q.size(0), k}, start.options());
  for (std::int64_t request = 0; request < requests && tokens > 0; ++request) {
    const auto own = [&](const at::Tensor& all) { return all.narrow(0, request * tokens, tokens); };
    const auto count = own(end).max().item<std::int64_t>();
    if (count > kIndexPageKeys * block_table.size(1)) {
      throw expectation_error(fmt::format("index_topk_paged: end of request {}", request),
                              fmt::format("at most {}", kIndexPageKeys * block_table.size(1)),
                              std::to_string(count));
    }
    const at::Tensor keys =
        widen_pages(cache.pages, block_table[request], std::max<std::int64_t>(count, 0));
    own(out).copy_(
        index_topk(own(q).to(at::kFloat), keys, own(queries.weights), own(start), own(end), k));
  }
  return out;
}

}  // namespace indexcache
