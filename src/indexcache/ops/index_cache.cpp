#include "indexcache/ops/index_cache.h"

#include "indexcache/base/error.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/tensor_check.h"

namespace indexcache {
namespace {

std::string of(const char* op, const char* argument) { return fmt::format("{}: {}", op, argument); }

// Values the host can see, each in [least, end).
void check_values(const std::string& where, const at::Tensor& values, std::int64_t least,
                  std::int64_t end) {
  if (!values.is_cpu()) return;
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    const std::int64_t value = values.const_data_ptr<std::int64_t>()[i];
    if (value < least || value >= end) {
      throw expectation_error(fmt::format("{}[{}]", where, i),
                              fmt::format("{} to {}", least, end - 1), std::to_string(value));
    }
  }
}

void check_per_token(const std::string& where, const at::Tensor& values, const at::Tensor& like) {
  require_tensor(
      values.dim() == 1 && values.size(0) == like.size(0) && values.scalar_type() == at::kLong &&
          values.is_contiguous() && values.device() == like.device(),
      where.c_str(), fmt::format("contiguous int64 [{}], on its device", like.size(0)), values);
}

}  // namespace

void check_index_pages(const char* op, const IndexKeyPages& cache) {
  const at::Tensor& pages = cache.pages;
  require_tensor(pages.dim() == 2 && pages.scalar_type() == at::kByte &&
                     pages.size(1) >= kIndexPageBytes && pages.stride(1) == 1 &&
                     (pages.size(0) <= 1 ||
                      (pages.stride(0) % 16 == 0 && pages.stride(0) >= kIndexPageBytes)) &&
                     aligned_to_16(pages),
                 of(op, "pages").c_str(),
                 fmt::format("uint8 [P, at least {}] at multiples of 16 bytes", kIndexPageBytes),
                 pages);
}

void check_same_type(const char* op, const IndexKeyType& queries, const IndexKeyType& keys) {
  if (queries == keys) return;
  throw expectation_error(of(op, "type of the queries"),
                          fmt::format("the cache's, {}", print_index_key_type(keys)),
                          print_index_key_type(queries));
}

RopeRows check_rope(const char* op, const at::Tensor& cos_sin, const at::Tensor& positions,
                    const at::Tensor& like) {
  require_tensor(cos_sin.dim() == 2 && cos_sin.size(1) == kIndexRopeDim &&
                     cos_sin.scalar_type() == at::kFloat && cos_sin.is_contiguous() &&
                     cos_sin.device() == like.device() && aligned_to_16(cos_sin),
                 of(op, "cos_sin").c_str(),
                 fmt::format("contiguous fp32 [P, {}] at a multiple of 16 bytes, on its device",
                             kIndexRopeDim),
                 cos_sin);
  check_per_token(of(op, "positions"), positions, like);
  check_values(of(op, "positions"), positions, 0, cos_sin.size(0));
  return {.cos_sin = cos_sin.const_data_ptr<float>(),
          .num_positions = cos_sin.size(0),
          .positions = positions.const_data_ptr<std::int64_t>()};
}

const std::int64_t* check_slots(const char* op, const at::Tensor& slots, std::int64_t num_slots,
                                const at::Tensor& like) {
  check_per_token(of(op, "slots"), slots, like);
  check_values(of(op, "slots"), slots, std::numeric_limits<std::int64_t>::min(), num_slots);
  return slots.const_data_ptr<std::int64_t>();
}

float check_amax_floor(const char* op, double amax_floor) {
  if (amax_floor >= kLeastAmaxFloor && amax_floor <= kMostAmaxFloor) {
    return static_cast<float>(amax_floor);
  }
  throw expectation_error(of(op, "amax_floor"),
                          fmt::format("{} to {}", kLeastAmaxFloor, kMostAmaxFloor),
                          fmt::format("{}", amax_floor));
}

IndexRowDType check_index_rows(const char* op, const at::Tensor& rows) {
  const bool full = rows.scalar_type() == at::kFloat;
  require_tensor(
      (full || rows.scalar_type() == at::kBFloat16) && rows.is_contiguous() &&
          rows.size(-1) == kIndexDim && aligned_to_16(rows),
      of(op, "rows").c_str(),
      fmt::format("contiguous fp32 or bf16 [..., {}] at a multiple of 16 bytes", kIndexDim), rows);
  return full ? IndexRowDType::kFloat32 : IndexRowDType::kBFloat16;
}

}  // namespace indexcache
