#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <optional>

#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_topk/index_topk_params.h"
#include "indexcache/selftest/cases.h"

namespace indexcache {
namespace {

struct Case {
  std::int64_t requests, tokens, pages, heads, top_k;  // pages of each request
};

// Small integers and power-of-two scales: scores are exact in fp32, ties abound.
struct Inputs {
  at::Tensor q, weights;    // [requests * tokens, ...]
  at::Tensor keys, scale;   // [requests, 64 pages, 128], [requests, 64 pages]
  at::Tensor pages, table;  // the same keys in shuffled pages, others of NaN between them
  at::Tensor start, end;
};

Inputs make_inputs(const Case& c, const at::Generator& generator) {
  const std::int64_t queries = c.requests * c.tokens, keys = kIndexPageKeys * c.pages;
  Inputs in;
  in.q = at::randint(-3, 4, {queries, c.heads, 128}, generator, at::kFloat);
  in.weights = at::randint(-2, 3, {queries, c.heads}, generator, at::kFloat);
  in.keys = at::randint(-3, 4, {c.requests, keys, 128}, generator, at::kFloat);
  in.scale = at::randint(-1, 2, {c.requests, keys}, generator, at::kFloat).exp2();
  in.start = at::randint(0, keys / 4 + 1, {queries}, generator, at::kInt);
  in.end = at::randint(keys / 2, keys + 1, {queries}, generator, at::kInt);
  in.end[0] = in.start[0];

  const std::int64_t used = c.requests * c.pages, all = used + 5;
  in.table = at::randperm(all, generator).narrow(0, 0, used).view({c.requests, c.pages});
  const auto bytes = in.keys.to(at::kFloat8_e4m3fn).view(at::kByte).reshape({used, -1});
  const auto scales = in.scale.view(at::kByte).reshape({used, -1});
  in.pages = at::full({all, kIndexPageBytes + 16}, 0x7F, at::kByte);
  in.pages.narrow(1, 0, kIndexPageBytes)
      .index_copy_(0, in.table.flatten(), at::cat({bytes, scales}, 1));
  in.table = in.table.to(at::kInt);
  return in;
}

at::Tensor reference(const Case& c, const Inputs& in) {
  const auto out = at::empty({in.q.size(0), c.top_k}, at::kInt);
  const auto keys = (in.keys * in.scale.unsqueeze(2)).contiguous();
  for (std::int64_t r = 0; r < c.requests; ++r) {
    const std::int64_t first = r * c.tokens;
    index_topk_ref({.num_queries = c.tokens,
                    .num_heads = c.heads,
                    .head_dim = 128,
                    .num_keys = keys.size(1),
                    .top_k = c.top_k,
                    .dtype = IndexDType::kFloat32,
                    .q = in.q[first].const_data_ptr(),
                    .keys = keys[r].const_data_ptr(),
                    .key_stride = 128,
                    .weights = in.weights[first].const_data_ptr<float>(),
                    .start = in.start.const_data_ptr<std::int32_t>() + first,
                    .end = in.end.const_data_ptr<std::int32_t>() + first,
                    .out = out.mutable_data_ptr<std::int32_t>() + first * c.top_k});
  }
  return out;
}

}  // namespace

void index_topk_fp8_cases(const SelfTestRun& run,
                          const std::function<decltype(index_topk_paged)>& op,
                          const std::function<decltype(index_topk_fp8)>& contiguous) {
  for (const Case& c : {Case{1, 9, 3, 32, 40}, Case{3, 1, 30, 32, 512}, Case{2, 4, 5, 64, 100},
                        Case{2, 2, 70, 5, 2048}}) {
    const Inputs in = make_inputs(c, run.generator);
    const auto on_device = [&](const at::Tensor& tensor) { return tensor.to(run.device); };
    const auto rows = [&](const at::Tensor& tensor, std::int64_t r) {
      return on_device(tensor.narrow(0, r * c.tokens, c.tokens));
    };
    const auto q = in.q.to(at::kFloat8_e4m3fn);
    const auto paged = [&](const std::optional<at::Tensor>& seeds) {
      return op({on_device(q), on_device(in.weights), {}}, {on_device(in.pages), {}},
                on_device(in.table), on_device(in.start), on_device(in.end), c.top_k,
                c.requests == 1 ? 0 : c.tokens, seeds);
    };
    const auto expected = reference(c, in), found = paged(std::nullopt);
    Verdict verdict = check_equal(found.cpu(), expected);
    verdict = both(verdict, check_same_bits(found, paged(found)));
    for (std::int64_t r = 0; r < c.requests; ++r) {
      const IndexKeyRows keys{
          on_device(in.keys[r].to(at::kFloat8_e4m3fn)), on_device(in.scale[r]), {}};
      const auto sets = contiguous({rows(q, r), rows(in.weights, r), {}}, keys, rows(in.start, r),
                                   rows(in.end, r), c.top_k, std::nullopt);
      verdict = both(verdict, check_equal(sets.cpu(), expected.narrow(0, r * c.tokens, c.tokens)));
    }
    run.report({"index_topk",
                fmt::format("fp8, {} requests x {} tokens x {} keys, {} heads, k {}, ties",
                            c.requests, c.tokens, 64 * c.pages, c.heads, c.top_k),
                verdict.worst, verdict.failure});
  }
}

}  // namespace indexcache
