#include "indexcache/screening/loss_increases.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <span>

#include "indexcache/base/error.h"
#include "indexcache/calibrate/layer_runner.h"
#include "indexcache/calibrate/sequences.h"
#include "indexcache/layers/norm.h"
#include "indexcache/train/indexer_attention.h"
#include "indexcache/train/lm_loss.h"

namespace indexcache {
namespace {

// Queries whose attention over every source's index set is computed at once.
constexpr std::int64_t kChunk = 1024;

at::Tensor to_tensor(std::span<const std::int32_t> values, at::Device device) {
  return at::tensor(std::vector<std::int64_t>(values.begin(), values.end()), at::kLong).to(device);
}

// One sequence: its pass under the start pattern, then the gradient from layer to layer back. Of the
// pass the layers' inputs and index sets are kept alone; a layer's graph is built when the gradient
// comes to it.
class SequencePass {
 public:
  SequencePass(const Model& model, const Pattern& start, const Sequence& sequence)
      : model_(model),
        start_(start),
        sequence_(sequence),
        device_(model.options().device),
        shape_(block_shape(model.config(), model.options().latent_norm_eps)) {
    auto frequencies = rope_frequencies(model.config());
    frequencies.inv_freq = frequencies.inv_freq.to(device_);
    rope_ = make_rope_table(frequencies, 0, std::ssize(sequence.tokens) - 1);
    const auto layers = model.num_layers();
    increases_ = at::zeros({layers, layers}, at::TensorOptions(device_).dtype(at::kDouble));
  }

  // This sequence's E.
  IncreaseMatrix run() {
    run_forward();
    auto gradient = loss_gradient();
    for (int layer = model_.num_layers() - 1; layer > 0; --layer) {
      gradient = back_through(layer, gradient);
    }
    const auto values = increases_.cpu();
    const auto* value = values.const_data_ptr<double>();
    IncreaseMatrix matrix;
    for (int layer = 0; layer < model_.num_layers(); ++layer) {
      const auto* row = value + layer * model_.num_layers();
      matrix.emplace_back(row, row + layer);
    }
    return matrix;
  }

 private:
  // What is kept is cloned: autograd saves no tensors made in inference mode.
  void run_forward() {
    const ModelLayerRunner runner(model_);
    auto hidden = runner.embed(sequence_);
    for (int layer = 0; layer < model_.num_layers(); ++layer) {
      inputs_.push_back(hidden.clone());
      const bool full = start_.is_full(layer);
      const auto source_set = full ? at::Tensor() : read_[start_.source(layer)];
      const auto output = runner.run_layer(layer, hidden, source_set);
      read_.push_back(full ? output.own_set.clone() : source_set);
      hidden = output.hidden;
    }
    inputs_.push_back(hidden.clone());
  }

  // Of the mean loss by the last hidden states: [1, T, hidden]. Sets num_scored_.
  at::Tensor loss_gradient() {
    const auto hidden = inputs_.back().requires_grad_();
    inputs_.pop_back();
    auto scored = hidden;
    auto targets = to_tensor(std::span(sequence_.tokens).subspan(1), device_);
    if (!sequence_.scored.empty()) {
      const auto positions = to_tensor(sequence_.scored, device_);
      scored = hidden.index_select(0, positions);
      targets = targets.index_select(0, positions);
    }
    num_scored_ = static_cast<double>(targets.size(0));
    const auto& weights = model_.weights();
    const auto normed = rms_norm(scored, weights.final_norm, shape_.rms_norm_eps);
    const auto even =
        at::full({targets.size(0)}, 1 / num_scored_, at::TensorOptions(device_).dtype(at::kFloat));
    lm_loss(normed, weights.head, targets, even).loss.backward();
    return hidden.grad().unsqueeze(0);
  }

  // gradient: by the layer's output, [1, T, hidden] -> by its input.
  at::Tensor back_through(int layer, const at::Tensor& gradient) {
    const auto& weights = model_.weights().blocks[layer];
    const auto hidden = inputs_[layer].unsqueeze(0).requires_grad_();
    inputs_[layer].reset();
    const auto x = rms_norm(hidden, weights.input_norm, shape_.rms_norm_eps);
    const auto projected = mla_project(x, weights.mla, shape_.mla, rope_);
    const auto attended =
        set_attention(mla_expand(projected, weights.mla, shape_.mla), shape_.mla.softmax_scale,
                      read_[layer].unsqueeze(0), attention_chunk_elements(device_))
            .flatten(-2);
    // The graph is cut where its gradient is asked for.
    const auto core = attended.detach().requires_grad_();
    const auto residual = hidden + at::linear(core, weights.mla.o_proj);
    const auto normed = rms_norm(residual, weights.post_attention_norm, shape_.rms_norm_eps);
    (residual + feed_forward(normed, weights, shape_)).backward(gradient);
    add_layer(layer, projected, core.grad()[0]);
    attended.backward(core.grad());
    return hidden.grad();
  }

  // gradient [T, h * v]: by the layer's core attention.
  void add_layer(int layer, const MlaProjected& projected, const at::Tensor& gradient) {
    const at::NoGradGuard no_grad;
    const auto& weights = model_.weights().blocks[layer];
    BlockCache cache;
    cache.latents = mla_cache_entry(projected)[0];
    const auto query = mla_absorb_query(projected, weights.mla, shape_.mla)[0];
    for (std::int64_t begin = 0; begin < query.size(0); begin += kChunk) {
      const auto count = std::min(kChunk, query.size(0) - begin);
      const auto chunk_query = query.narrow(0, begin, count).contiguous();
      const auto slope = gradient.narrow(0, begin, count).to(at::kFloat);
      const auto output = [&](const at::Tensor& set) {
        return core_attention(chunk_query, begin, weights, shape_, cache,
                              set.narrow(0, begin, count))
            .to(at::kFloat);
      };
      const auto own = output(read_[layer]);
      for (int source = 0; source < layer; ++source) {
        if (!start_.is_full(source) || source == start_.source(layer)) continue;
        const auto change = (slope * (output(read_[source]) - own)).sum(-1).to(at::kDouble);
        increases_[layer][source] += (change + num_scored_ / 2 * change.square()).sum();
      }
    }
  }

  const Model& model_;
  const Pattern& start_;
  const Sequence& sequence_;
  const at::Device device_;
  BlockShape shape_;
  RopeTable rope_;
  std::vector<at::Tensor> inputs_;  // by layer: [T, hidden]
  std::vector<at::Tensor> read_;    // by layer: the index set that it reads, [T, k]
  double num_scored_ = 0;
  at::Tensor increases_;  // [N, N] fp64
};

void check_finite(const IncreaseMatrix& increases, int sequence) {
  for (const auto& row : increases) {
    for (const double increase : row) {
      if (std::isfinite(increase)) continue;
      throw expectation_error(
          fmt::format("screening: increases of the loss of sequence {}", sequence),
          "a finite number", fmt::format("{}", increase));
    }
  }
}

}  // namespace

IncreaseMatrix estimate_increases(const Model& model, const Pattern& start,
                                  const std::vector<Sequence>& sequences, int num_threads,
                                  Journal* journal, const std::function<void(int)>& on_sequence) {
  check_some_query_selects(sequences, model.config().index_topk, "screening");
  model.check_pattern(start);
  std::vector<IncreaseMatrix> by_sequence(sequences.size());
  std::vector<int> missing;
  for (int sequence = 0; sequence < std::ssize(sequences); ++sequence) {
    const auto* known = journal != nullptr ? journal->find_increases(sequence) : nullptr;
    if (known != nullptr) {
      by_sequence[sequence] = *known;
    } else {
      missing.push_back(sequence);
    }
  }
  std::mutex mutex;
  auto done = static_cast<int>(sequences.size() - missing.size());
  const auto threads =
      SequenceThreads::choose(!model.options().device.is_cpu(), num_threads, sequences.size());
  threads.run(missing, [&](int sequence) {
    by_sequence[sequence] = SequencePass(model, start, sequences[sequence]).run();
    check_finite(by_sequence[sequence], sequence);
    if (journal != nullptr) journal->append_increases(sequence, by_sequence[sequence]);
    const std::scoped_lock lock(mutex);
    ++done;
    if (on_sequence) on_sequence(done);
  });

  IncreaseMatrix mean;
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    mean.emplace_back(layer, 0.0);
    for (const IncreaseMatrix& matrix : by_sequence) {
      for (int source = 0; source < layer; ++source) {
        mean[layer][source] += matrix[layer][source] / static_cast<double>(sequences.size());
      }
    }
  }
  return mean;
}

ScreeningRuns screening_runs(const Pattern& start) {
  const std::int64_t layers = start.num_layers();
  ScreeningRuns runs = {.layers = layers + 3 * (layers - 1), .attentions = layers - 1};
  for (int layer = 1; layer < start.num_layers(); ++layer) {
    for (int source = 0; source < layer; ++source) {
      if (start.is_full(source) && source != start.source(layer)) ++runs.attentions;
    }
  }
  return runs;
}

}  // namespace indexcache
