// What a model folder holds and costs, from its config and the headers of its shards alone: no
// weight is read.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "indexcache/checkpoint/checkpoint.h"
#include "indexcache/checkpoint/config.h"

namespace indexcache {

// The parts a model's parameters are counted by, in the order they are shown.
enum class Part {
  kEmbeddings,  // embed_tokens and lm_head
  kAttention,   // with the norms of the latents
  kIndexers,    // of Full layers
  kDenseMlp,
  kRouters,
  kSharedExperts,
  kRoutedExperts,
  kNorms,
  kUnusedIndexers,  // stored for Shared layers
  kMtpLayers,       // multi-token prediction
  kOther,           // of no known use
};
std::string_view part_name(Part part);

// The part that a tensor belongs to. Scales of FP8 weights belong with their weight.
Part part_of(std::string_view tensor, const ModelConfig& config);

struct PartSummary {
  Part part = Part::kOther;
  std::int64_t tensors = 0;     // scales of FP8 weights not counted
  std::int64_t parameters = 0;  // likewise
  std::int64_t bytes = 0;       // as stored, scales included
  std::map<std::string, std::int64_t> parameters_by_dtype;
};

struct ModelSummary {
  std::vector<PartSummary> parts;  // those that have tensors
  std::int64_t stored_parameters = 0, stored_bytes = 0;
  // What the model computes with: without MTP layers, unused indexers and other tensors.
  std::int64_t model_parameters = 0, model_bytes = 0;
  // Of these, what one token uses: the routed experts it is sent to, and of the embedding its row.
  std::int64_t active_parameters = 0;
};
// `config`: the checkpoint's, its schedule perhaps replaced (set_schedule).
ModelSummary summarize(const Checkpoint& checkpoint, const ModelConfig& config);

// Bytes that a token leaves in the caches, bf16: latent and RoPE key in every layer, an index key in
// every Full one.
struct TokenBytes {
  std::int64_t latents = 0, index_keys = 0;
  std::int64_t total() const { return latents + index_keys; }
};
TokenBytes cached_bytes_per_token(const ModelConfig& config, const Pattern& schedule);

}  // namespace indexcache
