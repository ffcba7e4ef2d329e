#include "indexcache/calibrate/layer_runner.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <vector>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

at::Tensor join(const std::vector<at::Tensor>& chunks) {
  return chunks.size() == 1 ? chunks.front() : at::cat(chunks);
}

at::Tensor token_tensor(const std::vector<std::int32_t>& tokens, std::size_t begin,
                        std::size_t end) {
  const std::vector<std::int64_t> ids(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                      tokens.begin() + static_cast<std::ptrdiff_t>(end));
  return at::tensor(ids, at::kLong);
}

}  // namespace

at::Tensor ModelLayerRunner::embed(const Sequence& sequence) const {
  const c10::InferenceMode guard;
  return model_.embed(token_tensor(sequence.tokens, 0, sequence.tokens.size() - 1));
}

LayerOutput ModelLayerRunner::run_layer(int layer, const at::Tensor& hidden,
                                        const at::Tensor& source_set) const {
  const c10::InferenceMode guard;
  const auto num_tokens = hidden.size(0);
  const bool full = !source_set.defined();
  auto cache = model_.make_layer_cache(full ? LayerRole::kFull : LayerRole::kShared, num_tokens);
  std::vector<at::Tensor> outputs, own_sets;
  for (std::int64_t begin = 0; begin < num_tokens; begin += chunk_) {
    const auto count = std::min(chunk_, num_tokens - begin);
    IndexSet own_set;
    outputs.push_back(model_.run_layer(
        layer, hidden.narrow(0, begin, count), begin, cache,
        full ? IndexSet() : IndexSet(source_set.narrow(0, begin, count)), &own_set));
    if (full) own_sets.push_back(own_set.indices());
  }
  return {join(outputs), full ? join(own_sets) : at::Tensor()};
}

double ModelLayerRunner::loss(const Sequence& sequence, const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  auto targets = token_tensor(sequence.tokens, 1, sequence.tokens.size());
  auto scored = hidden;
  if (!sequence.scored.empty()) {
    const auto positions = token_tensor(sequence.scored, 0, sequence.scored.size());
    targets = targets.index_select(0, positions);
    scored = hidden.index_select(0, positions.to(hidden.device()));
  }
  const auto losses = model_.token_losses(scored, targets).contiguous();
  const auto* values = losses.const_data_ptr<float>();
  double sum = 0;
  for (std::int64_t i = 0; i < losses.numel(); ++i) sum += values[i];
  return sum / static_cast<double>(losses.numel());
}

std::int64_t ModelLayerRunner::hidden_bytes_per_token() const {
  return model_.config().hidden_size *
         static_cast<std::int64_t>(c10::elementSize(model_.options().dtype));
}

std::int64_t ModelLayerRunner::index_set_bytes_per_token() const {
  return model_.config().index_topk * static_cast<std::int64_t>(sizeof(std::int32_t));
}

}  // namespace indexcache
