#include <bit>
#include <cmath>
#include <cstring>

#include "indexcache/kernels/e4m3.h"
#include "indexcache/ops/sparse_mla/latent_store.h"

namespace indexcache {
namespace {

float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

float rounded_to_bf16(float value) {
  if (std::isnan(value)) return value;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::bit_cast<float>((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000);
}

template <typename T>
T load(const unsigned char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

bool read_latent(const LatentStore& store, std::int64_t request, std::int64_t id, float* values) {
  if (id < 0 || id >= store.num_keys) return false;
  std::int64_t page = id >> store.page_shift;
  if (store.block_table) page = store.block_table[request * store.table_stride + page];
  if (page < 0) return false;
  const std::int64_t row = id & ((std::int64_t{1} << store.page_shift) - 1);
  const unsigned char* from = static_cast<const unsigned char*>(store.data) +
                              page * store.page_stride + row * store.row_stride;
  const bool e4m3 = store.format == LatentFormat::kE4M3;
  for (std::int64_t d = 0; d < kLatentDim; ++d) {
    if (e4m3) {
      const float scale = rounded_to_bf16(load<float>(from + kLatentDim + d / 128 * 4));
      values[d] = rounded_to_bf16(static_cast<float>(e4m3_value(from[d])) * scale);
    } else {
      values[d] = from_bf16(load<std::uint16_t>(from + 2 * d));
    }
  }
  const unsigned char* rope = from + (e4m3 ? kLatentDim + 16 : 2 * kLatentDim);
  for (std::int64_t d = 0; d < kRopeDim; ++d) {
    values[kLatentDim + d] = from_bf16(load<std::uint16_t>(rope + 2 * d));
  }
  return true;
}

}  // namespace indexcache
