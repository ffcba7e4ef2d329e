// Any bytes as a safetensors file: refused with an InputError, or tensors that tile the data.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace indexcache;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    std::size_t total = 0;
    for (const auto& [name, view] : parse_safetensors(bytes, "input")) {
      std::int64_t count = 1;
      for (const auto dimension : view.shape) count *= dimension;
      if (count != view.num_elements()) std::abort();
      if (view.bytes.size() != view.num_elements() * dtype_size(view.dtype)) std::abort();
      if (view.bytes.data() < bytes.data()) std::abort();
      if (view.bytes.data() + view.bytes.size() > bytes.data() + size) std::abort();
      total += view.bytes.size();
    }
    if (total + 8 > size) std::abort();
  } catch (const InputError&) {
  }
  return 0;
}
