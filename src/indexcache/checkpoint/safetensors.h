// The safetensors format: an 8-byte little-endian header length, a JSON header {name: {dtype,
// shape, data_offsets}}, then the data. Every offset, shape and size is checked before it is used;
// hostile files give an InputError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/base/file.h"

namespace indexcache {

enum class DType { kF64, kF32, kF16, kBF16, kF8E4M3, kI64, kI32, kI16, kI8, kU8, kBool };

std::string_view dtype_name(DType dtype);  // as the format spells it: "F32", "F8_E4M3"
std::size_t dtype_size(DType dtype);       // bytes an element

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
  std::string file;  // where it is stored, for errors

  std::int64_t num_elements() const;
};

// Parses a whole file that is in memory; `where` names it in errors. The views point into `bytes`.
std::map<std::string, TensorView, std::less<>> parse_safetensors(std::span<const std::byte> bytes,
                                                                 const std::string& where);

// Writes one tensor after another without holding them all; the header is known first.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<std::int64_t> shape;
  };
  // `metadata` becomes "__metadata__" ({"format": "pt"} makes transformers load the file).
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
