// index_topk against the roof of the machine, and against matmul + relu + weighted sum + topk in
// libtorch.
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include "harness.h"
#include "indexcache/ops/index_topk/index_topk.h"

namespace {

using indexcache::bench::Case;

enum class Mask { kAll, kCausal };

Case index_topk_case(std::int64_t queries, std::int64_t heads, std::int64_t num_keys, Mask mask,
                     at::ScalarType dtype, bool compare) {
  constexpr std::int64_t kDim = 128, kTopK = 2048;
  const at::Tensor q = at::randn({queries, heads, kDim}).to(dtype);
  const at::Tensor keys = at::randn({num_keys, kDim}).to(dtype);
  const at::Tensor weights = at::randn({queries, heads});
  const auto ints = at::dtype(at::kInt);
  const at::Tensor start = at::zeros({queries}, ints);
  const at::Tensor end = mask == Mask::kAll
                             ? at::full({queries}, num_keys, ints)
                             : at::arange(num_keys - queries + 1, num_keys + 1, ints);
  const double pairs = static_cast<double>(end.sum().item<std::int64_t>());
  const double element = dtype == at::kFloat ? 4 : 2;
  Case c;
  c.dtype = dtype;
  c.flops = 2.0 * static_cast<double>(heads * kDim) * pairs;
  c.bytes = element * static_cast<double>((num_keys + queries * heads) * kDim) +
            4.0 * static_cast<double>(queries * kTopK);
  c.run = [=] { indexcache::index_topk(q, keys, weights, start, end, kTopK); };
  if (compare) {
    c.other = [=] { indexcache::index_topk_torch(q, keys, weights, start, end, kTopK); };
  }
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  indexcache::bench::Suite suite("index_topk", argc, argv);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const std::string type = dtype == at::kFloat ? "fp32" : "bf16";
    for (const std::int64_t keys : {16384, 65536}) {
      const std::string n = std::to_string(keys / 1024) + "K keys " + type;
      suite.add("prefill 512 queries, 32 heads, " + n,
                [&] { return index_topk_case(512, 32, keys, Mask::kCausal, dtype, false); });
      suite.add("decode 1 query, 32 heads, " + n,
                [&] { return index_topk_case(1, 32, keys, Mask::kAll, dtype, true); });
    }
    suite.add("prefill 64 queries, 32 heads, 16K keys " + type,
              [&] { return index_topk_case(64, 32, 16384, Mask::kCausal, dtype, true); });
    suite.add("prefill 512 queries, 8 heads, 16K keys " + type,
              [&] { return index_topk_case(512, 8, 16384, Mask::kCausal, dtype, false); });
    suite.add("prefill 512 queries, 64 heads, 16K keys " + type,
              [&] { return index_topk_case(512, 64, 16384, Mask::kCausal, dtype, false); });
    suite.add("decode 1 query, 32 heads, 4K keys " + type,
              [&] { return index_topk_case(1, 32, 4096, Mask::kAll, dtype, true); });
  }
  suite.write();
}
