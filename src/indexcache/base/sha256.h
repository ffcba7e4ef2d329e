// SHA-256, to tell files apart: what `sha256sum` prints.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace indexcache {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  std::string hex();  // 64 lower-case digits; ends it

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace indexcache
