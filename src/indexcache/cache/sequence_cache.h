// SequenceCache: all that one sequence leaves behind for its later tokens, under one pattern.
// Storage only.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "indexcache/layers/block.h"
#include "indexcache/policy/pattern.h"

namespace indexcache {

struct CacheShape {
  int num_layers = 0;
  std::int64_t latent_dim = 0;  // kv_lora_rank + rope
  std::int64_t index_head_dim = 0;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
};

// Bytes a token takes under a pattern: latents in every layer, index keys only in Full ones.
struct CacheBytes {
  std::int64_t latents = 0, index_keys = 0;
  std::int64_t total() const { return latents + index_keys; }
};
CacheBytes cache_bytes_per_token(const CacheShape& shape, const Pattern& pattern);

enum class LayerRole { kFull, kShared };

// One layer's storage for `capacity` tokens, not initialised; index keys only for a Full layer.
BlockCache make_block_cache(const CacheShape& shape, LayerRole role, std::int64_t capacity);

class SequenceCache {
 public:
  // Holds up to `capacity` tokens. Throws DeviceError, naming the bytes needed and there, if memory
  // does not suffice.
  SequenceCache(const CacheShape& shape, const Pattern& pattern, std::int64_t capacity);

  const Pattern& pattern() const { return pattern_; }
  std::int64_t capacity() const { return capacity_; }
  std::int64_t length() const { return length_; }  // tokens in it
  void advance(std::int64_t tokens);
  // Forgets all tokens but the first `length`, at most length() of them.
  void truncate(std::int64_t length);
  void clear() { length_ = 0; }
  BlockCache& layer(int index) { return layers_[index]; }
  std::int64_t bytes() const;  // allocated

 private:
  Pattern pattern_;
  std::int64_t capacity_ = 0, length_ = 0;
  std::vector<BlockCache> layers_;
};

}  // namespace indexcache
