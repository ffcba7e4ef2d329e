#include "indexcache/train/lm_loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "indexcache/ops/wide_product.h"

namespace indexcache {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kChunkLogits = std::int64_t{1} << 27;  // on a GPU; 512 MB in fp32
constexpr std::int64_t kCpuChunkLogits = std::int64_t{1} << 22;

class LmLossFunction : public torch::autograd::Function<LmLossFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden,
                               const at::Tensor& head, const at::Tensor& targets,
                               const at::Tensor& weights) {
    const auto wide = wide_dtype(hidden);
    const auto chunk = std::max<std::int64_t>(
        1, (hidden.is_cuda() ? kChunkLogits : kCpuChunkLogits) / head.size(0));
    auto grad_head = at::zeros(head.sizes(), head.options().dtype(wide));
    std::vector<at::Tensor> losses, grad_hidden;
    for (std::int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      const auto count = std::min(chunk, hidden.size(0) - begin);
      const auto x = hidden.narrow(0, begin, count);
      const auto target = targets.narrow(0, begin, count).unsqueeze(1);
      const auto weight = weights.narrow(0, begin, count).to(wide).unsqueeze(1);
      auto logits = wide_product(x.unsqueeze(0), head.t().unsqueeze(0)).squeeze(0);
      const auto lse = at::logsumexp(logits, 1, /*keepdim=*/true);
      losses.push_back((lse - logits.gather(1, target)).squeeze(1));
      // d loss / d logits = weight * (softmax - onehot).
      auto grad = logits.sub_(lse).exp_();
      grad.scatter_add_(1, target, at::full({count, 1}, -1, grad.options()));
      const auto narrow = grad.mul_(weight).to(head.scalar_type());
      grad_hidden.push_back(at::mm(narrow, head));
      grad_head.add_(at::mm(narrow.t(), x));
    }
    const auto token_losses = at::cat(losses);
    context->save_for_backward({at::cat(grad_hidden), grad_head.to(head.scalar_type())});
    context->mark_non_differentiable({token_losses});
    return {(token_losses * weights).sum(), token_losses};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * grads[0].to(saved[0].scalar_type()),
            saved[1] * grads[0].to(saved[1].scalar_type()), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

LmLoss lm_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
               const at::Tensor& weights) {
  const auto results = LmLossFunction::apply(hidden, head, targets, weights);
  return {.loss = results[0], .token_losses = results[1]};
}

}  // namespace indexcache
