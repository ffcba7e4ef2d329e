#include "indexcache/calibrate/similarity.h"

#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "indexcache/calibrate/sequences.h"

namespace indexcache {
namespace {

SimilarityMatrix zeros(int num_layers) {
  SimilarityMatrix matrix;
  for (int layer = 0; layer < num_layers; ++layer) matrix.emplace_back(layer, 0.0);
  return matrix;
}

// One sequence's pass under `pattern`, and the cosines summed over its queries.
class SequencePass {
 public:
  SequencePass(const Model& model, const Pattern& pattern, std::int64_t num_tokens)
      : model_(model), pattern_(pattern), sums_(zeros(model.num_layers())) {
    for (int layer = 0; layer < model.num_layers(); ++layer) {
      const auto role = pattern.is_full(layer) ? LayerRole::kFull : LayerRole::kShared;
      caches_.push_back(model.make_layer_cache(role, num_tokens));
    }
  }

  // tokens [T], the ones after those of earlier calls, `begin` in number.
  void run_chunk(const at::Tensor& tokens, std::int64_t begin) {
    auto hidden = model_.embed(tokens);
    std::vector<IndexSet> index_sets(caches_.size());
    for (int layer = 0; layer < model_.num_layers(); ++layer) {
      const bool full = pattern_.is_full(layer);
      const auto source_set = full ? IndexSet() : index_sets[pattern_.source(layer)];
      const auto input = hidden;
      hidden =
          model_.run_layer(layer, input, begin, caches_[layer], source_set, &index_sets[layer]);
      add_layer(layer, input, begin, full ? index_sets[layer] : source_set, index_sets);
    }
  }

  const SimilarityMatrix& sums() const { return sums_; }

 private:
  void add_layer(int layer, const at::Tensor& input, std::int64_t begin, const IndexSet& read,
                 const std::vector<IndexSet>& index_sets) {
    // Queries with k keys are the last ones of the chunk.
    const auto first = std::max(model_.config().index_topk - 1 - begin, std::int64_t{0});
    const auto count = input.size(0) - first;
    if (count <= 0) return;
    const auto query = model_.attention_query(layer, input.narrow(0, first, count), begin + first);
    const auto output = [&](const IndexSet& index_set) {
      return model_
          .core_attention(layer, query, begin + first, caches_[layer],
                          index_set.indices().narrow(0, first, count))
          .to(at::kDouble);
    };
    const auto own = output(read);
    for (int source = 0; source < layer; ++source) {
      if (!pattern_.is_full(source)) continue;
      const auto cosines = at::cosine_similarity(own, output(index_sets[source]), 1);
      sums_[layer][source] += cosines.sum().item<double>();
    }
  }

  const Model& model_;
  const Pattern& pattern_;
  std::vector<BlockCache> caches_;  // by layer
  SimilarityMatrix sums_;
};

SimilarityMatrix summed_cosines(const Model& model, const Pattern& pattern,
                                const Sequence& sequence) {
  const c10::InferenceMode guard;
  const std::vector<std::int64_t> ids(sequence.tokens.begin(), sequence.tokens.end() - 1);
  const auto tokens = at::tensor(ids, at::kLong);
  const auto num_tokens = tokens.size(0);
  SequencePass pass(model, pattern, num_tokens);
  for (std::int64_t begin = 0; begin < num_tokens; begin += kIndexSetChunk) {
    pass.run_chunk(tokens.narrow(0, begin, std::min(kIndexSetChunk, num_tokens - begin)), begin);
  }
  return pass.sums();
}

}  // namespace

SimilarityMatrix measure_similarity(const Model& model, const Pattern& pattern,
                                    const std::vector<Sequence>& sequences, int num_threads,
                                    const std::function<void(int)>& on_sequence) {
  const auto top_k = model.config().index_topk;
  check_some_query_selects(sequences, top_k, "similarity");
  model.check_pattern(pattern);
  std::vector<SimilarityMatrix> sums(sequences.size());
  std::vector<int> all(sequences.size());
  std::iota(all.begin(), all.end(), 0);
  std::mutex mutex;
  int done = 0;
  const auto threads =
      SequenceThreads::choose(!model.options().device.is_cpu(), num_threads, sequences.size());
  threads.run(all, [&](int sequence) {
    sums[sequence] = summed_cosines(model, pattern, sequences[sequence]);
    const std::scoped_lock lock(mutex);
    ++done;
    if (on_sequence) on_sequence(done);
  });

  SimilarityMatrix matrix = zeros(model.num_layers());
  std::int64_t num_queries = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto num_tokens = static_cast<std::int64_t>(sequences[i].tokens.size()) - 1;
    num_queries += std::max(num_tokens - top_k + 1, std::int64_t{0});
    for (std::size_t layer = 0; layer < matrix.size(); ++layer) {
      for (std::size_t source = 0; source < layer; ++source) {
        matrix[layer][source] += sums[i][layer][source];
      }
    }
  }
  for (auto& row : matrix) {
    for (double& value : row) value /= static_cast<double>(num_queries);
  }
  return matrix;
}

}  // namespace indexcache
