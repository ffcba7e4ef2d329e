// The safetensors format: an 8-byte little-endian header length, a JSON header {name: {dtype,
// shape, data_offsets}}, then the data. Every offset, shape and size is checked before it is used;
// hostile files give an InputError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace indexcache {

// The format's element types but the sub-byte and complex ones, which no supported model stores.
enum class DType {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool
};

std::string_view dtype_name(DType dtype);  // as the format spells it: "F32", "F8_E4M3"
std::size_t dtype_size(DType dtype);       // bytes an element

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // any alignment
  std::string file;                  // where it is stored, for errors

  std::int64_t num_elements() const;
};

// "[2, 3]", for messages.
std::string shape_text(std::span<const std::int64_t> shape);

// Parses a whole file that is in memory; `where` names it in errors. The views point into `bytes`.
// Refused: a header that is longer than the file or than the format's 100 MB, not UTF-8 JSON, or
// not of this form (other keys and names given twice included); dtypes not listed above; a
// data_offsets that is not shape times dtype or outside the file; tensors that overlap or leave
// holes. Tensors of no elements are fine.
std::map<std::string, TensorView, std::less<>> parse_safetensors(std::span<const std::byte> bytes,
                                                                 const std::string& where);

// Writes one tensor after another without holding them all; the header is known first. Data lie in
// the file sorted by element size, largest first, as the format's own library writes them: every
// tensor is aligned to its elements, which PyTorch's reader needs.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<std::int64_t> shape;
  };
  // `metadata` becomes "__metadata__" ({"format": "pt"} makes transformers load the file). Throws
  // InputError for a name that is empty, given twice or "__metadata__", and for negative shapes.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  ~SafetensorsWriter();
  // In the order of `entries`; the size must be that of the entry.
  void write(std::span<const std::byte> bytes);
  // All entries written: fsync and rename into place.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace indexcache
