// A stand-in for a model: integer arithmetic in which every layer's output depends on its number,
// its input and the index set it reads, so that any mix-up changes the loss.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/tensor.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "indexcache/calibrate/layer_runner.h"

namespace indexcache {

class FakeRunner : public LayerRunner {
 public:
  explicit FakeRunner(int num_layers) : num_layers_(num_layers) {}
  int num_layers() const override { return num_layers_; }
  bool on_device() const override { return false; }
  at::Tensor embed(const Sequence& sequence) const override {
    const std::vector<std::int64_t> ids(sequence.tokens.begin(), sequence.tokens.end() - 1);
    return at::tensor(ids, at::kLong).unsqueeze(1).repeat({1, 3});
  }
  LayerOutput run_layer(int layer, const at::Tensor& hidden,
                        const at::Tensor& source_set) const override {
    ++runs;
    LayerOutput output;
    auto set = source_set;
    if (!set.defined()) {
      set = (hidden.sum(1, true) * (layer + 3)).remainder(1009).to(at::kInt);
      output.own_set = set;
    }
    output.hidden =
        (at::cumsum(hidden, 0) * 31 + set.to(at::kLong) * (2 * layer + 7) + layer).remainder(65521);
    return output;
  }
  double loss(const Sequence&, const at::Tensor& hidden) const override {
    return static_cast<double>(hidden.sum().item<std::int64_t>()) / 65521.0;
  }
  std::int64_t hidden_bytes_per_token() const override { return 3 * 8; }
  std::int64_t index_set_bytes_per_token() const override { return 4; }

  mutable std::atomic<std::int64_t> runs{0};

 private:
  int num_layers_;
};

inline std::vector<Sequence> fake_sequences(int count, int tokens) {
  std::vector<Sequence> sequences(count);
  for (int i = 0; i < count; ++i) {
    for (int t = 0; t <= tokens; ++t) sequences[i].tokens.push_back((i * 977 + t * t * 31) % 503);
  }
  return sequences;
}

// What the trie must agree with: one pattern, layer after layer.
inline Losses separate_losses(const LayerRunner& runner, const std::vector<Sequence>& sequences,
                              const Pattern& pattern) {
  Losses losses;
  for (const Sequence& sequence : sequences) {
    auto hidden = runner.embed(sequence);
    std::vector<at::Tensor> sets(pattern.num_layers());
    for (int layer = 0; layer < pattern.num_layers(); ++layer) {
      const auto output = runner.run_layer(
          layer, hidden, pattern.is_full(layer) ? at::Tensor() : sets[pattern.source(layer)]);
      hidden = output.hidden;
      sets[layer] = output.own_set;
    }
    losses.per_sequence.push_back(runner.loss(sequence, hidden));
  }
  return losses;
}

}  // namespace indexcache
