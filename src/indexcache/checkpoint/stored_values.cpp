#include "indexcache/checkpoint/stored_values.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/number_formats.h"

namespace indexcache {
namespace {

// Tensors lie at any byte offset: values are copied out, never read in place. The compiler turns
// the copies of these loops into (vector) loads.
template <typename Bits, typename Decode>
void decode_each(const std::byte* bytes, std::span<float> out, Decode decode) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * sizeof(Bits), sizeof(Bits));
    out[i] = decode(bits);
  }
}

void decode_plain(const TensorView& tensor, std::int64_t first, std::span<float> out) {
  const auto* bytes =
      tensor.bytes.data() + static_cast<std::size_t>(first) * dtype_size(tensor.dtype);
  switch (tensor.dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), bytes, out.size_bytes());
      return;
    case DType::kBF16:
      return decode_each<std::uint16_t>(bytes, out, bf16_to_float);
    case DType::kF16:
      return decode_each<std::uint16_t>(bytes, out, f16_to_float);
    case DType::kU8:
    case DType::kF8E8M0:
      return decode_each<std::uint8_t>(bytes, out, e8m0_to_float);
    default:
      INDEXCACHE_ASSERT(!"a dtype that is_weight_dtype or read_block_scales let pass");
  }
}

// The block length that cuts `size` elements into `blocks`, if there is one.
std::optional<std::int64_t> block_length(std::int64_t size, std::int64_t blocks,
                                         std::int64_t configured) {
  constexpr std::int64_t kMxBlock = 32;
  for (const std::int64_t length : {configured, size, std::int64_t{1}, kMxBlock}) {
    if (length > 0 && (size + length - 1) / length == blocks) return length;
  }
  if (blocks > 0 && size % blocks == 0) return size / blocks;
  return std::nullopt;
}

}  // namespace

BlockScales read_block_scales(const TensorView& weight, const TensorView& scale,
                              const QuantizationConfig& config, const std::string& name) {
  const auto where = fmt::format("{}: tensor {}_scale_inv", scale.file, name);
  switch (scale.dtype) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16:
    case DType::kU8:
    case DType::kF8E8M0:
      break;
    default:
      throw expectation_error(where, "F32, BF16, F16, U8 or F8_E8M0",
                              std::string(dtype_name(scale.dtype)));
  }
  const std::size_t dimensions = weight.shape.size();
  if (dimensions < 2) {
    throw expectation_error(fmt::format("{}: tensor {}", weight.file, name),
                            "a matrix, as it is F8_E4M3", shape_text(weight.shape));
  }
  BlockScales scales;
  scales.rows = weight.shape[dimensions - 2];
  scales.columns = weight.shape[dimensions - 1];
  auto shape = scale.shape;
  if (dimensions == 2 && shape.size() == 1) shape.push_back(1);  // one scale a row

  const auto mismatch = [&] {
    return expectation_error(where,
                             fmt::format("one scale a block of {}", shape_text(weight.shape)),
                             shape_text(scale.shape));
  };
  if (shape.size() != dimensions ||
      !std::equal(shape.begin(), shape.end() - 2, weight.shape.begin())) {
    throw mismatch();
  }
  scales.row_blocks = shape[dimensions - 2];
  scales.column_blocks = shape[dimensions - 1];
  const auto rows = block_length(scales.rows, scales.row_blocks, config.block_rows);
  const auto columns = block_length(scales.columns, scales.column_blocks, config.block_columns);
  if (!rows || !columns) throw mismatch();
  scales.block_rows = *rows;
  scales.block_columns = *columns;
  scales.values.resize(static_cast<std::size_t>(scale.num_elements()));
  decode_plain(scale, 0, scales.values);
  return scales;
}

bool is_weight_dtype(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF8E4M3;
}

void decode_values(const TensorView& weight, const BlockScales* scales, std::int64_t first,
                   std::span<float> out) {
  if (weight.dtype != DType::kF8E4M3) return decode_plain(weight, first, out);
  INDEXCACHE_ASSERT(scales != nullptr);
  const auto& s = *scales;
  // One stretch of equal scale at a time.
  std::size_t done = 0;
  while (done < out.size()) {
    const std::int64_t at = first + static_cast<std::int64_t>(done);
    const std::int64_t column = at % s.columns;
    const std::int64_t row = at / s.columns % s.rows;
    const std::int64_t matrix = at / s.columns / s.rows;
    const std::int64_t column_block = column / s.block_columns;
    const std::int64_t block_end = std::min((column_block + 1) * s.block_columns, s.columns);
    const auto count = std::min(static_cast<std::size_t>(block_end - column), out.size() - done);
    const float scale =
        s.values[(matrix * s.row_blocks + row / s.block_rows) * s.column_blocks + column_block];
    decode_each<std::uint8_t>(
        weight.bytes.data() + at, out.subspan(done, count),
        [scale](std::uint8_t bits) { return fp8_e4m3_to_float(bits) * scale; });
    done += count;
  }
}

}  // namespace indexcache
