#include "indexcache/checkpoint/shards.h"

#include <nlohmann/json.hpp>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/strict_json.h"

namespace indexcache {
namespace {

using TensorMap = std::map<std::string, TensorView, std::less<>>;

TensorMap open_file(const std::filesystem::path& path, Shards& shards) {
  shards.files.emplace_back(path);
  return parse_safetensors(shards.files.back().bytes(), path.string());
}

bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

// The tensors that each shard should hold, by shard.
std::map<std::string, std::vector<std::string>> read_index(const std::filesystem::path& path) {
  const auto where = path.string();
  const auto index = parse_json_strictly(read_file(path), where);
  const auto map = index.find("weight_map");
  if (!index.is_object() || map == index.end() || !map->is_object()) {
    throw expectation_error(where, "an object with a weight_map", json_excerpt(index));
  }
  std::map<std::string, std::vector<std::string>> names;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string() || !is_plain_file_name(file.get<std::string>())) {
      throw expectation_error(fmt::format("{}: weight_map: {}", where, quote(name)),
                              "a file name in the same folder", json_excerpt(file));
    }
    names[file.get<std::string>()].push_back(name);
  }
  return names;
}

}  // namespace

Shards open_shards(const std::filesystem::path& folder) {
  Shards shards;
  std::error_code ignored;  // what cannot be looked at is not there
  const auto single = folder / "model.safetensors";
  if (std::filesystem::exists(single, ignored)) {
    shards.tensors = open_file(single, shards);
    return shards;
  }
  const auto index = folder / "model.safetensors.index.json";
  if (!std::filesystem::exists(index, ignored)) {
    throw expectation_error(folder.string(), "model.safetensors or model.safetensors.index.json",
                            "neither");
  }
  for (const auto& [file, names] : read_index(index)) {
    auto tensors = open_file(folder / file, shards);
    for (const auto& name : names) {
      auto node = tensors.extract(name);
      if (node.empty()) {
        throw expectation_error((folder / file).string(),
                                fmt::format("tensor {}, which the index places there", quote(name)),
                                "none");
      }
      shards.tensors.insert(std::move(node));
    }
    if (!tensors.empty()) {
      shards.notices.push_back(
          fmt::format("{}: {} tensors that {} does not name are ignored, the first is {}", file,
                      tensors.size(), index.filename().string(), quote(tensors.begin()->first)));
    }
  }
  return shards;
}

}  // namespace indexcache
