// Model: a checkpoint's weights on a device, and the forward pass under any pattern.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "indexcache/cache/sequence_cache.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/layers/block.h"
#include "indexcache/model/load_weights.h"
#include "indexcache/policy/pattern.h"

namespace indexcache {

struct ModelOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype =
      at::kFloat;  // fp32 or bf16; router, selection bias and weights_proj stay fp32
  // q_a_layernorm and kv_a_layernorm of GLM: rms_norm_eps unless given (spec 2.1; 1e-6 compares
  // with transformers).
  std::optional<double> latent_norm_eps;
  // k of every layer's own index set; empty: the config's index_topk in all.
  std::vector<std::int64_t> index_topk = {};
};

// What a Full layer did with a chunk of tokens first_position .. first_position + T - 1.
struct IndexStep {
  int layer = 0;
  std::int64_t first_position = 0;
  at::Tensor hidden;     // [T, hidden], as the layer got it
  at::Tensor index_set;  // [T, k] int32, absolute positions
};
using IndexObserver = std::function<void(const IndexStep&)>;

class Model {
 public:
  // Throws InputError for an epsilon that is not finite and above 0, a k a layer that is not
  // positive or not one for each, and as load_weights().
  static Model load(const Checkpoint& checkpoint, const ModelOptions& options);

  const ModelConfig& config() const { return config_; }
  const ModelOptions& options() const { return options_; }
  const ModelWeights& weights() const { return weights_; }
  int num_layers() const { return config_.num_layers; }
  bool has_indexer(int layer) const { return weights_.blocks[layer].indexer.has_value(); }
  // All-Full where every layer has a usable indexer, else the checkpoint's own schedule: what
  // patterns are compared with.
  Pattern baseline() const;
  // Throws InputError naming the layers if `pattern` needs an indexer that the checkpoint lacks.
  void check_pattern(const Pattern& pattern) const;
  CacheShape cache_shape() const;
  SequenceCache make_cache(const Pattern& pattern, std::int64_t capacity) const;

  // --- The whole forward pass: appends tokens to the cache in chunks of `chunk` and returns their
  // last hidden states [T, hidden] (before the final norm). tokens [T] int64, any device.
  at::Tensor forward(const at::Tensor& tokens, SequenceCache& cache, std::int64_t chunk = 2048,
                     const IndexObserver& observer = {}) const;

  // --- Its parts, for those who walk the layers themselves (the pattern trie).
  at::Tensor embed(const at::Tensor& tokens) const;  // [T, hidden]
  // One layer over one chunk; arguments as block_forward.
  at::Tensor run_layer(int layer, const at::Tensor& hidden, std::int64_t first_position,
                       BlockCache& cache, const IndexSet& source_set, IndexSet* own_set) const;
  // Parts of one layer; arguments as those of the same names in block.h.
  at::Tensor attention_query(int layer, const at::Tensor& hidden,
                             std::int64_t first_position) const;
  at::Tensor core_attention(int layer, const at::Tensor& query, std::int64_t first_position,
                            const BlockCache& cache, const IndexSet& index_set) const;
  IndexerProjected index_inputs(int layer, const at::Tensor& hidden,
                                std::int64_t first_position) const;
  // Storage of one layer alone.
  BlockCache make_layer_cache(LayerRole role, std::int64_t capacity) const;

  // Final norm and head: [T, vocab] fp32.
  at::Tensor logits(const at::Tensor& hidden) const;
  // -log p(targets) for hidden [T, hidden], targets [T] int64: [T] fp32 on the CPU; chunked, so
  // that [T, vocab] never exists as a whole.
  at::Tensor token_losses(const at::Tensor& hidden, const at::Tensor& targets) const;

 private:
  ModelConfig config_;
  ModelOptions options_;
  ModelWeights weights_;
  BlockShape shape_;
  RopeFrequencies rope_;
};

BlockShape block_shape(const ModelConfig& config, std::optional<double> latent_norm_eps);
// YaRN applied; on the CPU. Spec section 2.2.
RopeFrequencies rope_frequencies(const ModelConfig& config);

}  // namespace indexcache
