#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/checkpoint/safetensors.h"

namespace indexcache {
namespace {

std::uint64_t entry_bytes(const SafetensorsWriter::Entry& entry, const std::string& where) {
  std::uint64_t size = dtype_size(entry.dtype);
  for (const std::int64_t dimension : entry.shape) {
    if (dimension < 0 ||
        __builtin_mul_overflow(size, static_cast<std::uint64_t>(dimension), &size)) {
      throw expectation_error(fmt::format("{}: tensor {}", where, entry.name),
                              "a shape that fits in memory", shape_text(entry.shape));
    }
  }
  return size;
}

void check_names(const std::vector<SafetensorsWriter::Entry>& entries, const std::string& where) {
  std::set<std::string_view> names;
  for (const auto& entry : entries) {
    if (entry.name.empty() || entry.name == "__metadata__" || !names.insert(entry.name).second) {
      throw expectation_error(where, "tensor names that are not empty, not __metadata__ and unique",
                              fmt::format("\"{}\"", entry.name));
    }
  }
}

}  // namespace

struct SafetensorsWriter::State {
  State(const std::filesystem::path& path, std::vector<Entry> list)
      : where(path.string()), entries(std::move(list)), file(path) {}

  std::string where;
  std::vector<Entry> entries;
  std::vector<std::uint64_t> offsets, sizes;  // of each entry in the file
  std::size_t next = 0;
  AtomicFile file;
};

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                                     const std::map<std::string, std::string>& metadata) {
  check_names(entries, path.string());
  state_ = std::make_unique<State>(path, std::move(entries));
  auto& state = *state_;
  for (const auto& entry : state.entries) state.sizes.push_back(entry_bytes(entry, state.where));

  std::vector<std::size_t> layout(state.entries.size());
  std::iota(layout.begin(), layout.end(), std::size_t{0});
  std::stable_sort(layout.begin(), layout.end(), [&](std::size_t a, std::size_t b) {
    return dtype_size(state.entries[a].dtype) > dtype_size(state.entries[b].dtype);
  });

  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  state.offsets.resize(state.entries.size());
  std::uint64_t end = 0;
  for (const std::size_t index : layout) {
    const auto& entry = state.entries[index];
    state.offsets[index] = end;
    end += state.sizes[index];
    header[entry.name] = {{"dtype", dtype_name(entry.dtype)},
                          {"shape", entry.shape},
                          {"data_offsets", {state.offsets[index], end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the data start aligned

  std::string length(8, '\0');
  for (std::size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  }
  for (auto& offset : state.offsets) offset += length.size() + text.size();
  state.file.write(length + text);
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  auto& state = *state_;
  INDEXCACHE_ASSERT(state.next < state.entries.size());
  INDEXCACHE_ASSERT(bytes.size() == state.sizes[state.next]);
  state.file.write_at(state.offsets[state.next], bytes);
  ++state.next;
}

void SafetensorsWriter::commit() {
  INDEXCACHE_ASSERT(state_->next == state_->entries.size());
  state_->file.commit();
}

}  // namespace indexcache
