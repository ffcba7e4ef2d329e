#include "indexcache/train/indexer_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "indexcache/ops/index_kl/index_kl.h"
#include "indexcache/ops/index_topk/index_topk.h"
#include "indexcache/ops/selected_attention/selected_attention.h"
#include "indexcache/ops/wide_product.h"

namespace indexcache {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kMinChunk = 16;
constexpr std::int64_t kMaxRows =
    32768;  // queries of all sequences in a chunk: cuBLAS counts batches in 16 bits
// Queries that select in one call: they are offered no key after the last of them.
constexpr std::int64_t kSelectionChunk = 4096;

struct Chunk {
  std::int64_t begin, count;
  std::int64_t end() const { return begin + count; }  // no query of it sees a later key
};

std::vector<Chunk> make_chunks(const at::Tensor& q, std::int64_t index_heads,
                               std::int64_t chunk_elements) {
  const auto tokens = q.size(2);
  const auto row = q.size(0) * std::max(q.size(1), index_heads) * tokens;
  const auto most = std::min(tokens, std::max(kMinChunk, kMaxRows / q.size(0)));
  const auto count = std::clamp(chunk_elements / row, std::min(kMinChunk, most), most);
  std::vector<Chunk> chunks;
  for (std::int64_t begin = 0; begin < tokens; begin += count) {
    chunks.push_back({begin, std::min(count, tokens - begin)});
  }
  return chunks;
}

// Which of the keys [0, chunk.end()) each query of the chunk sees: [B or 1, M, N].
at::Tensor visible_keys(const at::Tensor& index_set, const Chunk& chunk, at::Device device) {
  const auto options = at::TensorOptions().device(device).dtype(at::kLong);
  if (!index_set.defined()) {
    const auto queries = at::arange(chunk.begin, chunk.end(), options).unsqueeze(-1);
    return (at::arange(chunk.end(), options) <= queries).unsqueeze(0);
  }
  const auto set = index_set.narrow(1, chunk.begin, chunk.count).to(at::kLong);
  // Padding goes to a column of its own that is cut off.
  const auto column = at::where(set < 0, chunk.end(), set);
  auto visible = at::zeros({set.size(0), set.size(1), chunk.end() + 1}, options.dtype(at::kBool));
  return visible.scatter_(2, column, true).narrow(2, 0, chunk.end());
}

// What the chunks of a walk leave is written into tensors of the whole, made before it: a small tensor
// kept from each chunk would lie between the large ones that the chunk frees, and a C allocator could
// give the next chunk, which sees more keys, none of that memory again.

// index_kl summed over the chunks of a walk, with the gradients of the sum.
class IndexKlSum {
 public:
  explicit IndexKlSum(const IndexerProjected& indexer)
      : indexer_(indexer),
        grad_q_(at::empty(indexer.q.sizes(), indexer.q.options())),
        grad_keys_(at::zeros(indexer.keys.sizes(),
                             indexer.keys.options().dtype(wide_dtype(indexer.keys)))),
        grad_weights_(at::empty(indexer.weights.sizes(), indexer.weights.options())),
        kl_(at::zeros({}, grad_keys_.options())) {}

  void add(const Chunk& chunk, const at::Tensor& mass, const at::Tensor& visible) {
    const auto loss = index_kl(mass, indexer_.q.narrow(1, chunk.begin, chunk.count),
                               indexer_.keys.narrow(1, 0, chunk.end()),
                               indexer_.weights.narrow(1, chunk.begin, chunk.count), visible);
    kl_.add_(loss.kl.sum());
    grad_q_.narrow(1, chunk.begin, chunk.count).copy_(loss.grad_q);
    grad_weights_.narrow(1, chunk.begin, chunk.count).copy_(loss.grad_weights);
    grad_keys_.narrow(1, 0, chunk.end()).add_(loss.grad_keys);
  }

  at::Tensor kl() const { return kl_; }
  // Of q, keys and weights.
  variable_list gradients() const {
    return {grad_q_, grad_keys_.to(indexer_.keys.scalar_type()), grad_weights_};
  }

 private:
  const IndexerProjected& indexer_;
  at::Tensor grad_q_, grad_keys_, grad_weights_, kl_;
};

double num_queries(const IndexerProjected& indexer) {
  return static_cast<double>(indexer.q.size(0) * indexer.q.size(1));
}

variable_list scaled(const variable_list& gradients, const at::Tensor& factor) {
  variable_list result;
  for (const auto& gradient : gradients) {
    result.push_back(gradient * factor.to(gradient.scalar_type()));
  }
  return result;
}

// Saved, and differentiated, head-major: q, k, v [B, h, T, .]. Without index_q there is no KL.
class IndexerAttentionFunction : public torch::autograd::Function<IndexerAttentionFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const std::optional<at::Tensor>& index_q,
                               const std::optional<at::Tensor>& index_keys,
                               const std::optional<at::Tensor>& index_weights,
                               const std::optional<at::Tensor>& set, double scale,
                               std::int64_t chunk_elements) {
    const auto index_set = set.value_or(at::Tensor());
    const std::int64_t index_heads = index_q ? index_q->size(2) : 0;
    IndexerProjected indexer;
    std::optional<IndexKlSum> sum;
    if (index_q) {
      indexer = {.q = *index_q, .keys = *index_keys, .weights = *index_weights};
      sum.emplace(indexer);
    }
    auto out = at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, v.options());
    for (const auto& chunk : make_chunks(q, index_heads, chunk_elements)) {
      const auto visible = visible_keys(index_set, chunk, q.device());
      const auto attended =
          selected_attention(q.narrow(2, chunk.begin, chunk.count), k.narrow(2, 0, chunk.end()),
                             v.narrow(2, 0, chunk.end()), visible, scale);
      out.narrow(2, chunk.begin, chunk.count).copy_(attended.out);
      if (sum) sum->add(chunk, attended.mass, visible);
    }
    variable_list saved = {q, k, v, out, index_set};
    if (sum) {
      for (const auto& gradient : sum->gradients()) saved.push_back(gradient);
      context->saved_data["num_queries"] = num_queries(indexer);
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["scale"] = scale;
    context->saved_data["chunk_elements"] = chunk_elements;
    context->saved_data["index_heads"] = index_heads;
    context->saved_data["attention"] = q.requires_grad();
    if (!sum) return {out};
    return {out, sum->kl() / num_queries(indexer)};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    variable_list result(9);
    if (context->saved_data["attention"].toBool() && grads[0].defined()) {
      attention_gradient(*context, saved, grads[0], result);
    }
    if (grads.size() > 1 && grads[1].defined()) {
      const auto factor = grads[1] / context->saved_data["num_queries"].toDouble();
      const auto gradients = scaled({saved[5], saved[6], saved[7]}, factor);
      std::copy(gradients.begin(), gradients.end(), result.begin() + 3);
    }
    return result;
  }

 private:
  static void attention_gradient(AutogradContext& context, const variable_list& saved,
                                 const at::Tensor& grad_out, variable_list& result) {
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &index_set = saved[4];
    const auto wide = wide_dtype(q);
    auto grad_k = at::zeros(k.sizes(), k.options().dtype(wide));
    auto grad_v = at::zeros(v.sizes(), v.options().dtype(wide));
    result[0] = at::empty(q.sizes(), q.options());
    for (const auto& chunk : make_chunks(q, context.saved_data["index_heads"].toInt(),
                                         context.saved_data["chunk_elements"].toInt())) {
      const auto grad = selected_attention_backward(
          grad_out.narrow(2, chunk.begin, chunk.count), q.narrow(2, chunk.begin, chunk.count),
          k.narrow(2, 0, chunk.end()), v.narrow(2, 0, chunk.end()),
          out.narrow(2, chunk.begin, chunk.count), visible_keys(index_set, chunk, q.device()),
          context.saved_data["scale"].toDouble());
      result[0].narrow(2, chunk.begin, chunk.count).copy_(grad.q);
      grad_k.narrow(2, 0, chunk.end()).add_(grad.k);
      grad_v.narrow(2, 0, chunk.end()).add_(grad.v);
    }
    result[1] = grad_k.to(k.scalar_type());
    result[2] = grad_v.to(v.scalar_type());
  }
};

// The readers, head-major, are constants: they come as a pointer, not as variables.
class AveragedKlFunction : public torch::autograd::Function<AveragedKlFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& index_q,
                            const at::Tensor& index_keys, const at::Tensor& index_weights,
                            const std::vector<MlaExpanded>* readers,
                            const std::optional<at::Tensor>& set, double scale,
                            std::int64_t chunk_elements) {
    const auto index_set = set.value_or(at::Tensor());
    const IndexerProjected indexer = {.q = index_q, .keys = index_keys, .weights = index_weights};
    IndexKlSum sum(indexer);
    for (const auto& chunk : make_chunks(readers->front().q, index_q.size(2), chunk_elements)) {
      const auto visible = visible_keys(index_set, chunk, index_q.device());
      at::Tensor mass;
      for (const auto& reader : *readers) {
        const auto one = attention_mass(reader.q.narrow(2, chunk.begin, chunk.count),
                                        reader.k.narrow(2, 0, chunk.end()), visible, scale);
        mass = mass.defined() ? mass.add_(one) : one;
      }
      sum.add(chunk, mass.div_(static_cast<double>(readers->size())), visible);
    }
    context->save_for_backward(sum.gradients());
    context->saved_data["num_queries"] = num_queries(indexer);
    return sum.kl() / num_queries(indexer);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto factor = grads[0] / context->saved_data["num_queries"].toDouble();
    auto result = scaled(context->get_saved_variables(), factor);
    result.resize(7);
    return result;
  }
};

at::Tensor head_major(const at::Tensor& x) { return x.transpose(1, 2).contiguous(); }

std::optional<at::Tensor> if_defined(const at::Tensor& x) {
  return x.defined() ? std::optional(x) : std::nullopt;
}

}  // namespace

IndexerAttention indexer_attention(const MlaExpanded& attention, double softmax_scale,
                                   const IndexerProjected& indexer, const at::Tensor& index_set,
                                   std::int64_t chunk_elements) {
  const auto results = IndexerAttentionFunction::apply(
      head_major(attention.q), head_major(attention.k), head_major(attention.v),
      std::optional(indexer.q), std::optional(indexer.keys), std::optional(indexer.weights),
      if_defined(index_set), softmax_scale, chunk_elements);
  return {.out = results[0].transpose(1, 2), .kl = results[1]};
}

at::Tensor set_attention(const MlaExpanded& attention, double softmax_scale,
                         const at::Tensor& index_set, std::int64_t chunk_elements) {
  const std::optional<at::Tensor> none;
  return IndexerAttentionFunction::apply(head_major(attention.q), head_major(attention.k),
                                         head_major(attention.v), none, none, none,
                                         if_defined(index_set), softmax_scale, chunk_elements)[0]
      .transpose(1, 2);
}

at::Tensor averaged_index_kl(const std::vector<MlaExpanded>& readers, double softmax_scale,
                             const IndexerProjected& indexer, const at::Tensor& index_set,
                             std::int64_t chunk_elements) {
  std::vector<MlaExpanded> constants;
  for (const auto& reader : readers) {
    constants.push_back(
        {.q = head_major(reader.q.detach()), .k = head_major(reader.k.detach()), .v = {}});
  }
  return AveragedKlFunction::apply(indexer.q, indexer.keys, indexer.weights, &constants,
                                   if_defined(index_set), softmax_scale, chunk_elements);
}

at::Tensor select_own_sets(const IndexerProjected& indexer, std::int64_t top_k) {
  const at::NoGradGuard no_grad;
  const auto batch = indexer.q.size(0), tokens = indexer.q.size(1);
  const auto options = indexer.q.options().dtype(at::kInt);
  const auto start = at::zeros({tokens}, options);
  const auto end = at::arange(1, tokens + 1, options);
  auto sets = at::empty({batch, tokens, top_k}, options);
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    for (std::int64_t first = 0; first < tokens; first += kSelectionChunk) {
      const auto count = std::min(kSelectionChunk, tokens - first);
      const auto set =
          index_topk(indexer.q[sequence].narrow(0, first, count).contiguous(),
                     indexer.keys[sequence].narrow(0, 0, first + count).contiguous(),
                     indexer.weights[sequence].narrow(0, first, count).contiguous(),
                     start.narrow(0, first, count), end.narrow(0, first, count), top_k);
      sets[sequence].narrow(0, first, count).copy_(set);
    }
  }
  return sets;
}

}  // namespace indexcache
