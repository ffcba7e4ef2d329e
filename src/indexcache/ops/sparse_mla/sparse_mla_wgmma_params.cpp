#include "indexcache/ops/sparse_mla/sparse_mla_wgmma_params.h"

#include <cmath>
#include <limits>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

void require(bool holds, const char* what, const std::string& expected, std::int64_t found) {
  if (holds) return;
  throw expectation_error(fmt::format("sparse_mla: {}", what), expected, std::to_string(found));
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

void check_store(const LatentStore& kv, EntryKind kind) {
  const std::int64_t row = latent_row_bytes(kv.format);
  require(kv.row_stride >= row && kv.row_stride % 16 == 0, "kv: bytes a row",
          fmt::format("a multiple of 16, at least {}", row), kv.row_stride);
  require(kv.page_stride % 16 == 0, "kv: bytes a page", "a multiple of 16", kv.page_stride);
  require(kv.page_shift >= 0 && kv.page_shift <= 31, "kv: log2 of the keys a page", "0 to 31",
          kv.page_shift);
  const std::int64_t most =
      kind == EntryKind::kUnion ? kUnionMaxKeys : std::numeric_limits<std::int32_t>::max();
  require(kv.num_keys >= 0 && kv.num_keys <= most, "kv: number of keys",
          fmt::format("0 to {}", most), kv.num_keys);
}

}  // namespace

void check_sparse_mla_wgmma(const SparseMlaWgmmaParams& p) {
  require(p.num_heads >= 1 && p.num_heads <= 128, "heads", "1 to 128", p.num_heads);
  if (!(p.softmax_scale > 0) || std::isinf(p.softmax_scale)) {
    throw expectation_error("sparse_mla: softmax_scale", "a finite number above 0",
                            fmt::format("{}", p.softmax_scale));
  }
  check_store(p.kv, p.kind);
  if (!aligned(p.q) || !aligned(p.out) || !aligned(p.kv.data) || !aligned(p.workspace)) {
    throw InputError("sparse_mla: expected q, out, kv and workspace at multiples of 16 bytes");
  }
  if (p.kind == EntryKind::kIndices) {
    require(p.num_groups == p.num_queries, "groups of one query", std::to_string(p.num_queries),
            p.num_groups);
  } else if (!p.group_begin || !p.counts) {
    throw InputError("sparse_mla: a union needs its groups' first rows and counts");
  }
  require(sparse_mla_wgmma_ctas(p) <= std::numeric_limits<std::int32_t>::max(), "groups",
          "fewer than 2^31 CTAs", p.num_groups);
}

std::optional<SparseMlaWgmmaParams> wgmma_params(const SparseMlaParams& p) {
  const bool takes = p.dtype == SparseMlaDType::kBFloat16 && p.dim == kLatentDim + kRopeDim &&
                     p.value_dim == kLatentDim && p.num_heads <= 128 && p.softmax_scale > 0 &&
                     std::isfinite(p.softmax_scale) && p.kv_stride * 2 % 16 == 0 && aligned(p.q) &&
                     aligned(p.kv) && aligned(p.out);
  if (!takes) return std::nullopt;
  return SparseMlaWgmmaParams{
      .num_queries = p.num_queries,
      .num_heads = p.num_heads,
      .softmax_scale = p.softmax_scale,
      .kv = {.data = p.kv, .row_stride = 2 * p.kv_stride, .num_keys = p.num_keys},
      .num_groups = p.num_queries,
      .entries = p.indices,
      .entry_stride = p.top_k,
      .q = p.q,
      .out = p.out,
      .lse = p.lse};
}

}  // namespace indexcache
