#include "indexcache/ops/sparse_mla/sparse_mla_paged.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_unique.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/ops/cuda_device.h"
#include "indexcache/ops/sparse_mla/latent_expansion.h"
#include "indexcache/ops/tensor_check.h"

namespace indexcache {
namespace {

constexpr std::int64_t kDim = kLatentDim + kRopeDim;

bool is_bf16(const LatentCache& cache) { return cache.pages.scalar_type() == at::kBFloat16; }

void check_cache(const LatentCache& cache, const at::Tensor& q) {
  const at::Tensor& pages = cache.pages;
  const auto format = is_bf16(cache) ? LatentFormat::kBFloat16 : LatentFormat::kE4M3;
  const auto fits = [&](int dim) {
    return pages.size(dim) <= 1 || pages.stride(dim) * pages.element_size() % 16 == 0;
  };
  require_tensor(pages.dim() == 3 && (is_bf16(cache) || pages.scalar_type() == at::kByte) &&
                     pages.size(1) >= 1 &&
                     pages.size(2) * pages.element_size() >= latent_row_bytes(format) &&
                     pages.stride(2) == 1 && fits(0) && fits(1) && aligned_to_16(pages) &&
                     pages.device() == q.device(),
                 "sparse_mla: pages",
                 "bf16 [P, S, at least 576] or uint8 [P, S, at least 656] on q's device, rows at "
                 "multiples of 16 "
                 "bytes",
                 pages);
  const bool plain_rows = pages.size(0) == 1 && !cache.block_table;
  require_tensor(plain_rows || std::has_single_bit(static_cast<std::uint64_t>(pages.size(1))),
                 "sparse_mla: pages", "rows a page (the second size) a power of two", pages);
  if (!cache.block_table) return;
  const at::Tensor& table = *cache.block_table;
  require_tensor(table.dim() == 2 && table.scalar_type() == at::kInt &&
                     table.device() == q.device() && (table.size(1) <= 1 || table.stride(1) == 1),
                 "sparse_mla: block_table", "int32 [R, W] on q's device, rows contiguous", table);
}

void check_q(const at::Tensor& q) {
  require_tensor(q.dim() == 3 && q.size(1) >= 1 && q.size(1) <= 128 && q.size(2) == kDim &&
                     q.scalar_type() == at::kBFloat16 && q.is_contiguous(),
                 "sparse_mla: q", "contiguous bf16 [M, 1 to 128, 576]", q);
  if (c10::GradMode::is_enabled() && q.requires_grad()) {
    throw InputError("sparse_mla: has no gradient, but q requires one");
  }
}

void check_ints(const at::Tensor& values, const char* where, at::IntArrayRef sizes,
                const at::Tensor& q) {
  require_tensor(values.sizes() == sizes && values.scalar_type() == at::kInt &&
                     values.is_contiguous() && values.device() == q.device(),
                 where, c10::str("contiguous int32 ", sizes, " on q's device"), values);
}

void check_request(const std::optional<at::Tensor>& request, std::int64_t count,
                   const LatentCache& cache, const at::Tensor& q) {
  if (!request) return;
  check_ints(*request, "sparse_mla: request", {count}, q);
  if (!q.is_cpu() || !cache.block_table) return;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t row = request->const_data_ptr<std::int32_t>()[i];
    if (row >= 0 && row < cache.block_table->size(0)) continue;
    throw expectation_error(fmt::format("sparse_mla: request[{}]", i),
                            fmt::format("0 to {}", cache.block_table->size(0) - 1),
                            std::to_string(row));
  }
}

// --- The CPU: the rows in use as a plain kv, the ids as rows of it.
// [M, k] int64: page * S + row of each id, -1 where there is no such key.
at::Tensor slots_of(const at::Tensor& indices, const std::optional<at::Tensor>& request,
                    const LatentCache& cache) {
  const std::int64_t page_keys = cache.pages.size(1), num_pages = cache.pages.size(0);
  const std::int64_t columns = indices.size(1);
  const at::Tensor slots = indices.to(at::kLong, /*non_blocking=*/false, /*copy=*/true);
  for (std::int64_t t = 0; t < slots.size(0); ++t) {
    auto* row = slots.mutable_data_ptr<std::int64_t>() + t * columns;
    for (auto* slot = row; slot != row + columns; ++slot) {
      std::int64_t page = *slot < 0 ? -1 : *slot / page_keys;
      if (cache.block_table && page >= 0) {
        const at::Tensor& table = *cache.block_table;
        const std::int64_t own = request ? request->const_data_ptr<std::int32_t>()[t] : 0;
        page = page >= table.size(1)
                   ? -1
                   : table.const_data_ptr<std::int32_t>()[own * table.stride(0) + page];
        if (page >= num_pages) {
          throw expectation_error("sparse_mla: block_table",
                                  fmt::format("pages below {}", num_pages), std::to_string(page));
        }
      }
      *slot = page < 0 || page >= num_pages ? -1 : page * page_keys + *slot % page_keys;
    }
  }
  return slots;
}

// [n, 576] bf16 from rows of a cache.
at::Tensor widen_rows(const at::Tensor& rows, const LatentCache& cache) {
  if (is_bf16(cache)) return rows.narrow(1, 0, kDim).contiguous();
  const auto part = [&](std::int64_t first, std::int64_t size, at::ScalarType dtype) {
    return rows.narrow(1, first, size).contiguous().view(dtype);
  };
  const at::Tensor scale = part(kLatentDim, 16, at::kFloat).to(at::kBFloat16).to(at::kFloat);
  const at::Tensor latents = part(0, kLatentDim, at::kFloat8_e4m3fn)
                                 .to(at::kFloat)
                                 .mul_(scale.repeat_interleave(kLatentDim / 4, 1))
                                 .to(at::kBFloat16);
  return at::cat({latents, part(kLatentDim + 16, 2 * kRopeDim, at::kBFloat16)}, 1);
}

SparseMlaResult on_cpu(const at::Tensor& q, const LatentCache& cache,
                       const std::optional<at::Tensor>& request, const at::Tensor& indices,
                       double softmax_scale) {
  const at::Tensor slots = slots_of(indices, request, cache);
  const at::Tensor skipped = slots.lt(0);
  const auto [used, place] = at::_unique(slots.masked_select(skipped.logical_not()), true, true);
  const at::Tensor rows = cache.pages.reshape({-1, cache.pages.size(2)}).index_select(0, used);
  const at::Tensor own = at::full(slots.sizes(), -1, slots.options().dtype(at::kInt))
                             .masked_scatter_(skipped.logical_not(), place.to(at::kInt));
  return sparse_mla(q, widen_rows(rows, cache), own, kLatentDim, softmax_scale);
}

// The sets that a union was made of: [M, E], -1 where an entry is not a query's own.
at::Tensor sets_of(const at::Tensor& group_begin, const at::Tensor& entries,
                   const at::Tensor& counts, std::int64_t num_queries) {
  const auto* begin = group_begin.const_data_ptr<std::int32_t>();
  const std::int64_t room = entries.size(1);
  const at::Tensor sets = at::full({num_queries, room}, -1, entries.options());
  for (std::int64_t g = 0; g < entries.size(0); ++g) {
    const std::int64_t first = begin[g], size = begin[g + 1] - first;
    const std::int64_t count = counts.const_data_ptr<std::int32_t>()[g];
    if (first < 0 || size < 0 || size > kGroupQueries || first + size > num_queries || count < 0 ||
        count > room) {
      throw expectation_error(
          fmt::format("sparse_mla: group {}", g),
          fmt::format("0 to {} rows below {}, 0 to {} entries", kGroupQueries, num_queries, room),
          fmt::format("[{}, {}), {} entries", first, first + size, count));
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const auto entry =
          static_cast<std::uint32_t>(entries.const_data_ptr<std::int32_t>()[g * room + i]);
      for (std::int64_t j = 0; j < size; ++j) {
        if (!(entry >> (kUnionIdBits + j) & 1)) continue;
        sets.mutable_data_ptr<std::int32_t>()[(first + j) * room + i] =
            static_cast<std::int32_t>(entry & kUnionIdMask);
      }
    }
  }
  return sets;
}

// Of each query, the row of its group.
std::optional<at::Tensor> request_of_queries(const std::optional<at::Tensor>& request,
                                             const at::Tensor& group_begin,
                                             std::int64_t num_queries) {
  if (!request) return std::nullopt;
  at::Tensor own = at::full({num_queries}, 0, request->options());
  const auto* begin = group_begin.const_data_ptr<std::int32_t>();
  for (std::int64_t g = 0; g + 1 < group_begin.size(0); ++g) {
    std::fill(own.mutable_data_ptr<std::int32_t>() + begin[g],
              own.mutable_data_ptr<std::int32_t>() + begin[g + 1],
              request->const_data_ptr<std::int32_t>()[g]);
  }
  return own;
}

#ifdef INDEXCACHE_CUDA
LatentStore latent_store(const LatentCache& cache, EntryKind kind) {
  const at::Tensor& pages = cache.pages;
  const std::int64_t page_keys = pages.size(1);
  const bool plain_rows = pages.size(0) == 1 && !cache.block_table;
  const std::int64_t most =
      kind == EntryKind::kUnion ? kUnionMaxKeys : std::numeric_limits<std::int32_t>::max();
  LatentStore store;
  store.format = is_bf16(cache) ? LatentFormat::kBFloat16 : LatentFormat::kE4M3;
  store.data = pages.const_data_ptr();
  // One row, or one page, has any stride.
  store.row_stride = page_keys > 1 ? pages.stride(1) * pages.element_size()
                                   : (latent_row_bytes(store.format) + 15) / 16 * 16;
  store.page_stride = pages.size(0) > 1 ? pages.stride(0) * pages.element_size() : 0;
  store.page_shift = plain_rows ? 31 : std::countr_zero(static_cast<std::uint64_t>(page_keys));
  std::int64_t pages_of_ids = pages.size(0);
  if (cache.block_table) {
    store.block_table = cache.block_table->const_data_ptr<std::int32_t>();
    store.table_stride = cache.block_table->stride(0);
    pages_of_ids = cache.block_table->size(1);
  }
  store.num_keys = std::min(most, page_keys * pages_of_ids);
  return store;
}

SparseMlaWgmmaParams wgmma_params_of(const at::Tensor& q, const LatentCache& cache,
                                     const std::optional<at::Tensor>& request, EntryKind kind,
                                     EntrySplit split, double softmax_scale) {
  SparseMlaWgmmaParams params;
  params.num_queries = q.size(0);
  params.num_heads = q.size(1);
  params.softmax_scale = static_cast<float>(softmax_scale);
  params.kind = kind;
  params.split = split;
  params.kv = latent_store(cache, kind);
  params.request = request ? request->const_data_ptr<std::int32_t>() : nullptr;
  params.q = q.const_data_ptr();
  return params;
}

// The latents of a cache as bf16, in memory of its own.
struct Expanded {
  at::Tensor rows, table;
  LatentStore store;
};
Expanded expand(const LatentCache& cache, const LatentStore& from, std::int64_t num_requests,
                CUstream_st* stream) {
  Expanded expanded;
  const auto options = cache.pages.options();
  expanded.rows =
      at::empty({expanded_keys(from, num_requests), kDim}, options.dtype(at::kBFloat16));
  LatentExpansion expansion = {.from = from,
                               .num_requests = num_requests,
                               .num_pages = cache.pages.size(0),
                               .rows = expanded.rows.mutable_data_ptr()};
  if (cache.block_table) {
    expanded.table = at::empty({num_requests, pages_of_request(from)}, options.dtype(at::kInt));
    expansion.table = expanded.table.mutable_data_ptr<std::int32_t>();
  }
  expand_latents_cuda(expansion, stream);
  expanded.store = expanded_store(expansion);
  return expanded;
}

SparseMlaResult on_cuda(const at::Tensor& q, const LatentCache& cache,
                        SparseMlaWgmmaParams& params) {
  const c10::DeviceGuard guard(q.device());
  SparseMlaResult result{at::empty({q.size(0), q.size(1), kLatentDim}, q.options()),
                         at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat))};
  params.out = result.out.mutable_data_ptr();
  params.lse = result.lse.mutable_data_ptr<float>();
  check_sparse_mla_wgmma(params);
  const auto stream = current_stream(q.device());
  const std::int64_t requests = cache.block_table ? cache.block_table->size(0) : 1;
  Expanded expanded;
  if (worth_expanding(params, requests)) {
    expanded = expand(cache, params.kv, requests, stream);
    params.kv = expanded.store;
  }
  const at::Tensor workspace =
      at::empty({sparse_mla_wgmma_workspace(params)}, q.options().dtype(at::kByte));
  params.workspace = workspace.mutable_data_ptr();
  sparse_mla_wgmma_cuda(params, stream);
  return result;
}
#endif

[[noreturn]] void refuse_device(const at::Tensor& q) {
  throw expectation_error("sparse_mla: q", "a CPU or CUDA tensor", c10::str(q.device()));
}

}  // namespace

SparseMlaResult sparse_mla_paged(const at::Tensor& q, const LatentCache& cache,
                                 const std::optional<at::Tensor>& request,
                                 const at::Tensor& indices, double softmax_scale,
                                 [[maybe_unused]] EntrySplit split) {
  check_q(q);
  check_cache(cache, q);
  require_tensor(indices.dim() == 2, "sparse_mla: indices", "[M, k]", indices);
  check_ints(indices, "sparse_mla: indices", {q.size(0), indices.size(1)}, q);
  check_request(request, q.size(0), cache, q);
  if (q.is_cpu()) return on_cpu(q, cache, request, indices, softmax_scale);
#ifdef INDEXCACHE_CUDA
  if (q.is_cuda()) {
    SparseMlaWgmmaParams params =
        wgmma_params_of(q, cache, request, EntryKind::kIndices, split, softmax_scale);
    params.num_groups = q.size(0);
    params.entries = indices.const_data_ptr<std::int32_t>();
    params.entry_stride = indices.size(1);
    return on_cuda(q, cache, params);
  }
#endif
  refuse_device(q);
}

SparseMlaResult sparse_mla_union(const at::Tensor& q, const LatentCache& cache,
                                 const at::Tensor& group_begin,
                                 const std::optional<at::Tensor>& request,
                                 const at::Tensor& entries, const at::Tensor& counts,
                                 double softmax_scale, [[maybe_unused]] EntrySplit split) {
  check_q(q);
  check_cache(cache, q);
  require_tensor(entries.dim() == 2, "sparse_mla: entries", "[G, E]", entries);
  const std::int64_t groups = entries.size(0);
  check_ints(entries, "sparse_mla: entries", {groups, entries.size(1)}, q);
  check_ints(counts, "sparse_mla: counts", {groups}, q);
  check_ints(group_begin, "sparse_mla: group_begin", {groups + 1}, q);
  check_request(request, groups, cache, q);
  if (q.is_cpu()) {
    const at::Tensor sets = sets_of(group_begin, entries, counts, q.size(0));
    return on_cpu(q, cache, request_of_queries(request, group_begin, q.size(0)), sets,
                  softmax_scale);
  }
#ifdef INDEXCACHE_CUDA
  if (q.is_cuda()) {
    SparseMlaWgmmaParams params =
        wgmma_params_of(q, cache, request, EntryKind::kUnion, split, softmax_scale);
    params.num_groups = groups;
    params.group_begin = group_begin.const_data_ptr<std::int32_t>();
    params.entries = entries.const_data_ptr<std::int32_t>();
    params.entry_stride = entries.size(1);
    params.counts = counts.const_data_ptr<std::int32_t>();
    return on_cuda(q, cache, params);
  }
#endif
  refuse_device(q);
}

}  // namespace indexcache
