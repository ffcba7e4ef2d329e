// The safetensors files of a model folder, mapped, as one set of tensors.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "indexcache/base/file.h"
#include "indexcache/checkpoint/safetensors.h"

namespace indexcache {

struct Shards {
  std::vector<MappedFile> files;
  std::map<std::string, TensorView, std::less<>> tensors;  // views into `files`
  std::vector<std::string> notices;
};

// model.safetensors or, without one, the shards that model.safetensors.index.json names. A shard's
// name is a plain file name: none leads out of the folder. Tensors that a shard holds and the index
// does not place there are left out with a notice.
Shards open_shards(const std::filesystem::path& folder);

}  // namespace indexcache
