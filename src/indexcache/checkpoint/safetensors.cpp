#include "indexcache/checkpoint/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/strict_json.h"

namespace indexcache {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::size_t size;
};

constexpr std::array kDTypes = {
    DTypeInfo{DType::kF64, "F64", 8},        DTypeInfo{DType::kF32, "F32", 4},
    DTypeInfo{DType::kF16, "F16", 2},        DTypeInfo{DType::kBF16, "BF16", 2},
    DTypeInfo{DType::kF8E4M3, "F8_E4M3", 1}, DTypeInfo{DType::kF8E5M2, "F8_E5M2", 1},
    DTypeInfo{DType::kF8E8M0, "F8_E8M0", 1}, DTypeInfo{DType::kI64, "I64", 8},
    DTypeInfo{DType::kI32, "I32", 4},        DTypeInfo{DType::kI16, "I16", 2},
    DTypeInfo{DType::kI8, "I8", 1},          DTypeInfo{DType::kU64, "U64", 8},
    DTypeInfo{DType::kU32, "U32", 4},        DTypeInfo{DType::kU16, "U16", 2},
    DTypeInfo{DType::kU8, "U8", 1},          DTypeInfo{DType::kBool, "BOOL", 1},
};

const DTypeInfo& dtype_info(DType dtype) {
  for (const auto& info : kDTypes) {
    if (info.dtype == dtype) return info;
  }
  INDEXCACHE_ASSERT(!"a dtype of the list");
  return kDTypes[0];
}

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's limit
constexpr std::size_t kMaxDimensions = 16;              // bounds what a hostile shape costs

// One tensor as the header states it, offsets from the start of the data.
struct HeaderEntry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<std::vector<std::uint64_t>> shape;
  std::optional<std::vector<std::uint64_t>> data_offsets;
};

// Takes the header's JSON event by event: {name: {"dtype": string, "shape": [n...], "data_offsets":
// [begin, end]}, "__metadata__": {string: string}} and nothing else, so that a hostile header
// costs no more memory than its tensors.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& where) : where_(where) {}

  std::vector<HeaderEntry> take() { return std::move(entries_); }

  bool start_object(std::size_t) override {
    if (level_ == Level::kOutside) {
      level_ = Level::kHeader;
    } else if (level_ == Level::kName) {
      level_ = in_metadata_ ? Level::kMetadata : Level::kTensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool key(std::string& key) override {
    if (level_ == Level::kHeader) {
      if (!names_.insert(key).second) {
        throw expectation_error(where_, "every tensor name once", quote(key) + " twice");
      }
      in_metadata_ = key == "__metadata__";
      if (!in_metadata_)
        entries_.push_back({.name = key, .dtype = {}, .shape = {}, .data_offsets = {}});
      level_ = Level::kName;
    } else if (level_ == Level::kMetadata) {
      if (!metadata_keys_.insert(key).second) {
        throw expectation_error(where_ + ": __metadata__", "every key once", quote(key) + " twice");
      }
    } else {
      start_field(key);
    }
    return true;
  }

  bool string(std::string& value) override {
    if (level_ == Level::kMetadata) return true;
    if (level_ != Level::kField || field_ != "dtype") unexpected("a string");
    const auto info = std::find_if(kDTypes.begin(), kDTypes.end(),
                                   [&](const DTypeInfo& known) { return known.name == value; });
    if (info == kDTypes.end()) {
      throw expectation_error(here(), "a dtype such as F32, F16, BF16, F8_E4M3, I64 or U8",
                              quote(value));
    }
    entries_.back().dtype = info->dtype;
    level_ = Level::kTensor;
    return true;
  }

  bool start_array(std::size_t) override {
    if (level_ != Level::kField || field_ == "dtype") unexpected("a list");
    (field_ == "shape" ? entries_.back().shape : entries_.back().data_offsets).emplace();
    level_ = Level::kList;
    return true;
  }

  bool number_unsigned(std::uint64_t value) override {
    if (level_ != Level::kList) unexpected(fmt::format("{}", value));
    auto& list = field_ == "shape" ? *entries_.back().shape : *entries_.back().data_offsets;
    if (list.size() == kMaxDimensions) {
      throw expectation_error(here(), fmt::format("at most {} numbers", kMaxDimensions), "more");
    }
    list.push_back(value);
    return true;
  }

  bool end_array() override {
    level_ = Level::kTensor;
    return true;
  }

  bool end_object() override {
    if (level_ == Level::kTensor) {
      const auto& entry = entries_.back();
      if (!entry.dtype || !entry.shape || !entry.data_offsets) {
        throw expectation_error(where_ + ": tensor " + quote(entry.name),
                                "dtype, shape and data_offsets", "one of them missing");
      }
    }
    level_ = level_ == Level::kHeader ? Level::kOutside : Level::kHeader;
    return true;
  }

  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) override { unexpected(fmt::format("{}", value)); }
  bool number_float(double, const std::string& text) override { unexpected(text); }
  bool binary(nlohmann::json::binary_t&) override { unexpected("binary data"); }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::json::exception& error) override {
    throw input_error("{}: header is not valid JSON: {}", where_, json_complaint(error));
  }

 private:
  // What encloses the next event: nothing; the header; the value of a name in it; the metadata; a
  // tensor's description; the value of a field of it; a list of numbers.
  enum class Level { kOutside, kHeader, kName, kMetadata, kTensor, kField, kList };

  std::string here() const {
    if (entries_.empty() || level_ == Level::kOutside || in_metadata_) return where_ + ": header";
    auto text = where_ + ": tensor " + quote(entries_.back().name);
    if (level_ == Level::kField || level_ == Level::kList) text += ": " + field_;
    return text;
  }

  void start_field(const std::string& key) {
    auto& entry = entries_.back();
    const bool known = key == "dtype" || key == "shape" || key == "data_offsets";
    const bool again = (key == "dtype" && entry.dtype) || (key == "shape" && entry.shape) ||
                       (key == "data_offsets" && entry.data_offsets);
    if (!known || again) {
      throw expectation_error(here(), "the keys dtype, shape and data_offsets, each once",
                              quote(key) + (again ? " twice" : ""));
    }
    field_ = key;
    level_ = Level::kField;
  }

  [[noreturn]] void unexpected(const std::string& found) const {
    const char* expected = "the header's object";
    if (level_ == Level::kName) expected = "an object";
    if (level_ == Level::kMetadata) expected = "a string";
    if (level_ == Level::kField) expected = field_ == "dtype" ? "a string" : "a list";
    if (level_ == Level::kList) expected = "a non-negative integer";
    throw expectation_error(here(), expected, found);
  }

  const std::string& where_;
  Level level_ = Level::kOutside;
  bool in_metadata_ = false;
  std::string field_;
  std::vector<HeaderEntry> entries_;
  std::set<std::string, std::less<>> names_, metadata_keys_;
};

std::string_view header_text(std::span<const std::byte> bytes, const std::string& where) {
  if (bytes.size() < kLengthBytes) {
    throw expectation_error(where, "a safetensors file of at least 8 bytes",
                            fmt::format("{} bytes", bytes.size()));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  }
  const std::uint64_t most = std::min<std::uint64_t>(kMaxHeaderBytes, bytes.size() - kLengthBytes);
  if (length > most) {
    throw expectation_error(where + ": header length",
                            fmt::format("at most {} (the file has {} bytes)", most, bytes.size()),
                            fmt::format("{}", length));
  }
  const auto header = bytes.subspan(kLengthBytes, length);
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  if (!text.starts_with('{')) {
    throw expectation_error(where + ": header", "JSON that starts with {", "something else");
  }
  check_no_nul(text, where + ": header");
  return text;
}

// The entry's bytes inside `data`, after checking its numbers against each other.
TensorView make_view(const HeaderEntry& entry, std::span<const std::byte> data,
                     const std::string& where) {
  const auto here = where + ": tensor " + quote(entry.name);
  const auto& offsets = *entry.data_offsets;
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size()) {
    throw expectation_error(here + ": data_offsets",
                            fmt::format("[begin, end] within {} bytes of data", data.size()),
                            fmt::format("[{}]", fmt::join(offsets, ", ")));
  }
  TensorView view;
  view.dtype = *entry.dtype;
  view.file = where;
  // A zero dimension makes the product 0 whatever the others are, so those are checked alone.
  std::uint64_t size = dtype_size(view.dtype);
  bool overflow = false;
  for (const std::uint64_t dimension : *entry.shape) {
    overflow |= dimension > static_cast<std::uint64_t>(INT64_MAX);
    overflow |= __builtin_mul_overflow(size, dimension, &size);
    view.shape.push_back(static_cast<std::int64_t>(dimension));
  }
  if (overflow || size != offsets[1] - offsets[0]) {
    throw expectation_error(here,
                            overflow ? "a shape that fits in memory"
                                     : fmt::format("{} bytes for {} {}", size,
                                                   dtype_name(view.dtype), shape_text(view.shape)),
                            overflow
                                ? fmt::format("[{}]", fmt::join(*entry.shape, ", "))
                                : fmt::format("data_offsets of {} bytes", offsets[1] - offsets[0]));
  }
  view.bytes = data.subspan(offsets[0], size);
  return view;
}

// Tensors must tile the data: the format allows neither overlaps nor holes.
void check_tiling(const std::vector<HeaderEntry>& entries, std::uint64_t data_size,
                  const std::string& where) {
  std::vector<const HeaderEntry*> by_offset;
  for (const auto& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(), [](const HeaderEntry* a, const HeaderEntry* b) {
    return *a->data_offsets < *b->data_offsets;
  });
  std::uint64_t end = 0;
  for (const auto* entry : by_offset) {
    const auto& offsets = *entry->data_offsets;
    if (offsets[0] != end) {
      throw expectation_error(where + ": tensor " + quote(entry->name),
                              fmt::format("data from byte {} on, where the one before ends", end),
                              fmt::format("from byte {}", offsets[0]));
    }
    end = offsets[1];
  }
  if (end != data_size) {
    throw expectation_error(where, fmt::format("{} bytes of data, as its tensors say", end),
                            fmt::format("{}", data_size));
  }
}

}  // namespace

std::string_view dtype_name(DType dtype) { return dtype_info(dtype).name; }
std::size_t dtype_size(DType dtype) { return dtype_info(dtype).size; }

std::int64_t TensorView::num_elements() const {
  return static_cast<std::int64_t>(bytes.size() / dtype_size(dtype));
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::map<std::string, TensorView, std::less<>> parse_safetensors(std::span<const std::byte> bytes,
                                                                 const std::string& where) {
  const auto text = header_text(bytes, where);
  HeaderReader reader(where);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  const auto entries = reader.take();

  const auto data = bytes.subspan(kLengthBytes + text.size());
  std::map<std::string, TensorView, std::less<>> tensors;
  for (const auto& entry : entries) tensors.emplace(entry.name, make_view(entry, data, where));
  check_tiling(entries, data.size(), where);
  return tensors;
}

}  // namespace indexcache
