#include "indexcache/calibrate/identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "indexcache/base/file.h"
#include "indexcache/base/sha256.h"

namespace indexcache {
namespace {

// The 8-byte length and the JSON header of a safetensors file; all of it if it is shorter.
std::size_t header_size(std::span<const std::byte> bytes) {
  std::uint64_t length = 0;
  if (bytes.size() < sizeof(length)) return bytes.size();
  std::memcpy(&length, bytes.data(), sizeof(length));
  return static_cast<std::size_t>(std::min<std::uint64_t>(length, bytes.size() - sizeof(length))) +
         sizeof(length);
}

// `count` blocks of `bytes`, from the first to the last, and whole if they cover it.
void hash_blocks(Sha256& hash, std::span<const std::byte> bytes, std::uint64_t count) {
  if (count * kHashBlock >= bytes.size()) {
    hash.update(bytes);
    return;
  }
  const std::uint64_t last = bytes.size() - kHashBlock;
  for (std::uint64_t i = 0; i < count; ++i) {
    // In two parts, so that no product overflows.
    const std::uint64_t begin = last / (count - 1) * i + last % (count - 1) * i / (count - 1);
    hash.update(bytes.subspan(begin, kHashBlock));
  }
}

}  // namespace

std::string model_sha256(const std::filesystem::path& folder, std::uint64_t most_bytes) {
  std::vector<std::filesystem::path> shards;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  }
  std::ranges::sort(shards);
  std::uint64_t all_bytes = 0;
  for (const auto& shard : shards) all_bytes += std::filesystem::file_size(shard);
  Sha256 hash;
  for (const char* name : {"config.json", "tokenizer.json"}) {
    const auto path = folder / name;
    if (!std::filesystem::exists(path)) continue;
    const MappedFile file(path);
    hash.update(fmt::format("{} {}\n", name, file.bytes().size()));
    hash.update(file.bytes());
  }
  for (const auto& shard : shards) {
    const MappedFile file(shard);
    const auto bytes = file.bytes();
    hash.update(fmt::format("\n{} {}\n", shard.filename().string(), bytes.size()));
    if (all_bytes <= most_bytes) {
      hash.update(bytes);
      continue;
    }
    const double share = static_cast<double>(bytes.size()) / static_cast<double>(all_bytes);
    const auto blocks =
        static_cast<std::uint64_t>(share * static_cast<double>(most_bytes)) / kHashBlock;
    hash.update(bytes.first(header_size(bytes)));
    hash_blocks(hash, bytes, std::max<std::uint64_t>(blocks, 2));
  }
  return hash.hex();
}

std::string file_sha256(const std::filesystem::path& path) {
  const MappedFile file(path);
  Sha256 hash;
  hash.update(file.bytes());
  return hash.hex();
}

}  // namespace indexcache
