// LayerRunner: what the pattern trie needs of a model, one layer of one whole sequence at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "indexcache/data/text.h"
#include "indexcache/model/model.h"

namespace indexcache {

struct LayerOutput {
  at::Tensor hidden;   // [T, hidden]
  at::Tensor own_set;  // [T, k] int32; undefined for a Shared layer
};

// Functions are pure and safe to call from several threads.
class LayerRunner {
 public:
  virtual ~LayerRunner() = default;
  virtual int num_layers() const = 0;
  virtual bool on_device() const = 0;  // not the CPU: sequences then run one after another
  virtual at::Tensor embed(const Sequence& sequence) const = 0;  // [T, hidden]
  // Shared with `source_set`; Full if that is undefined.
  virtual LayerOutput run_layer(int layer, const at::Tensor& hidden,
                                const at::Tensor& source_set) const = 0;
  // Mean negative log-likelihood over the scored positions.
  virtual double loss(const Sequence& sequence, const at::Tensor& hidden) const = 0;

  virtual std::int64_t hidden_bytes_per_token() const = 0;
  virtual std::int64_t index_set_bytes_per_token() const = 0;
};

// A model's layers, in chunks of `chunk` tokens: the same bits as Model::forward with that chunk
// on the same number of threads.
class ModelLayerRunner : public LayerRunner {
 public:
  static constexpr std::int64_t kChunk = 2048;

  explicit ModelLayerRunner(const Model& model, std::int64_t chunk = kChunk)
      : model_(model), chunk_(chunk) {}
  int num_layers() const override { return model_.num_layers(); }
  bool on_device() const override { return !model_.options().device.is_cpu(); }
  at::Tensor embed(const Sequence& sequence) const override;
  LayerOutput run_layer(int layer, const at::Tensor& hidden,
                        const at::Tensor& source_set) const override;
  double loss(const Sequence& sequence, const at::Tensor& hidden) const override;
  std::int64_t hidden_bytes_per_token() const override;
  std::int64_t index_set_bytes_per_token() const override;

 private:
  const Model& model_;
  std::int64_t chunk_;
};

}  // namespace indexcache
