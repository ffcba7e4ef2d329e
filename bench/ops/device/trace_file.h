// What benches read of a file that `indexcache trace` wrote.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace indexcache::bench {

// Elements of four bytes; a file that is not as expected ends the bench.
class TraceFile {
 public:
  explicit TraceFile(const std::string& path) : path_(path), file_(path, std::ios::binary) {
    std::uint64_t bytes = 0;
    file_.read(reinterpret_cast<char*>(&bytes), 8);
    header_.resize(file_ ? bytes : 0);
    file_.read(header_.data(), static_cast<std::streamsize>(header_.size()));
  }

  // The layers i for which there is a tensor `name`.i, ascending.
  std::vector<int> layers(const std::string& name) const {
    constexpr int kMostLayers = 1000;
    std::vector<int> found;
    for (int i = 0; i < kMostLayers; ++i) {
      if (position(name, i) != std::string::npos) found.push_back(i);
    }
    if (found.empty()) fail(name, 0);
    return found;
  }
  std::vector<std::int64_t> shape(const std::string& name, int layer) const {
    return numbers(name, layer, "shape");
  }
  // The last `rows` rows of a tensor.
  template <typename T>
  std::vector<T> last_rows(const std::string& name, int layer, std::int64_t rows) {
    static_assert(sizeof(T) == 4);
    const auto shape = this->shape(name, layer), offsets = numbers(name, layer, "data_offsets");
    if (shape.empty() || offsets.size() != 2 || shape[0] < rows) fail(name, rows);
    std::vector<T> values((offsets[1] - offsets[0]) / 4 / shape[0] * rows);
    const auto bytes = static_cast<std::int64_t>(values.size() * 4);
    file_.seekg(8 + static_cast<std::int64_t>(header_.size()) + offsets[1] - bytes);
    file_.read(reinterpret_cast<char*>(values.data()), bytes);
    if (!file_) fail(name, rows);
    return values;
  }

 private:
  std::size_t position(const std::string& name, int layer) const {
    return header_.find("\"" + name + "." + std::to_string(layer) + "\":");
  }
  // Those of `"key":[...]` of a tensor's entry.
  std::vector<std::int64_t> numbers(const std::string& name, int layer,
                                    const std::string& key) const {
    const std::size_t at = header_.find("\"" + key + "\":[", position(name, layer));
    if (at == std::string::npos) return {};
    std::istringstream text(header_.substr(header_.find('[', at) + 1));
    std::vector<std::int64_t> numbers;
    for (std::int64_t n; text >> n; text.ignore()) numbers.push_back(n);
    return numbers;
  }
  [[noreturn]] void fail(const std::string& name, std::int64_t rows) const {
    std::fprintf(stderr, "%s: expected %s.N of at least %lld rows\n", path_.c_str(), name.c_str(),
                 static_cast<long long>(rows));
    std::exit(1);
  }

  std::string path_, header_;
  std::ifstream file_;
};

}  // namespace indexcache::bench
