#include "indexcache/cache/sequence_cache.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/base/machine.h"

namespace indexcache {
namespace {

std::int64_t element_size(at::ScalarType dtype) {
  return static_cast<std::int64_t>(c10::elementSize(dtype));
}

}  // namespace

CacheBytes cache_bytes_per_token(const CacheShape& shape, const Pattern& pattern) {
  const auto size = element_size(shape.dtype);
  return {.latents = pattern.num_layers() * shape.latent_dim * size,
          .index_keys = pattern.num_full() * shape.index_head_dim * size};
}

BlockCache make_block_cache(const CacheShape& shape, LayerRole role, std::int64_t capacity) {
  const auto options = at::TensorOptions().dtype(shape.dtype).device(shape.device);
  BlockCache cache;
  cache.latents = at::empty({capacity, shape.latent_dim}, options);
  if (role == LayerRole::kFull) {
    cache.index_keys = at::empty({capacity, shape.index_head_dim}, options);
  }
  return cache;
}

SequenceCache::SequenceCache(const CacheShape& shape, const Pattern& pattern, std::int64_t capacity)
    : pattern_(pattern), capacity_(capacity) {
  INDEXCACHE_ASSERT(pattern.num_layers() == shape.num_layers);
  const auto per_token = cache_bytes_per_token(shape, pattern).total();
  const auto failure = [&](std::string_view found) {
    return device_error("context of {} tokens: its cache needs {} bytes a token, {}", capacity,
                        per_token, found);
  };
  // Pages are only taken when written, so a context larger than memory would die half-way: refuse
  // it now.
  if (shape.device.is_cpu()) {
    const auto available = available_memory_bytes();
    if (capacity > available / per_token) {
      throw failure(fmt::format("{} bytes are available", available));
    }
  }
  try {
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      const auto role = pattern.is_full(layer) ? LayerRole::kFull : LayerRole::kShared;
      layers_.push_back(make_block_cache(shape, role, capacity));
    }
  } catch (const c10::Error&) {
    throw failure("more than the device has left");
  }
}

void SequenceCache::advance(std::int64_t tokens) {
  INDEXCACHE_ASSERT(length_ + tokens <= capacity_);
  length_ += tokens;
}

void SequenceCache::truncate(std::int64_t length) {
  INDEXCACHE_ASSERT(length >= 0 && length <= length_);
  length_ = length;
}

std::int64_t SequenceCache::bytes() const {
  std::int64_t total = 0;
  for (const auto& layer : layers_) {
    total += static_cast<std::int64_t>(layer.latents.nbytes());
    if (layer.index_keys.defined()) total += static_cast<std::int64_t>(layer.index_keys.nbytes());
  }
  return total;
}

}  // namespace indexcache
