// sparse_mla against the roof of the machine, and against gather + matmul + softmax + matmul in
// libtorch.
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include "harness.h"
#include "indexcache/ops/sparse_mla/sparse_mla.h"

namespace {

using indexcache::bench::Case;

Case sparse_mla_case(std::int64_t queries, std::int64_t heads, std::int64_t num_keys,
                     at::ScalarType dtype, bool compare) {
  constexpr std::int64_t kDim = 576, kValueDim = 512, kTopK = 2048;
  const at::Tensor q = at::randn({queries, heads, kDim}).to(dtype);
  const at::Tensor kv = at::randn({num_keys, kDim}).to(dtype);
  // Uniform, ascending: nothing shared between neighbouring queries, the hardest for caches.
  const at::Tensor indices = std::get<0>(at::randint(num_keys, {queries, kTopK}, at::kInt).sort());
  const double element = dtype == at::kFloat ? 4 : 2;
  Case c;
  c.dtype = dtype;
  c.flops = 2.0 * static_cast<double>(queries * kTopK * heads * (kDim + kValueDim));
  c.bytes = element * static_cast<double>(queries * (kTopK * kDim + heads * (kDim + kValueDim)));
  c.run = [=] { indexcache::sparse_mla(q, kv, indices, kValueDim, 0.04); };
  if (compare) c.other = [=] { indexcache::sparse_mla_torch(q, kv, indices, kValueDim, 0.04); };
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  indexcache::bench::Suite suite("sparse_mla", argc, argv);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const std::string type = dtype == at::kFloat ? "fp32" : "bf16";
    for (const std::int64_t keys : {16384, 65536}) {
      const std::string n = std::to_string(keys / 1024) + "K keys " + type;
      suite.add("prefill 256 queries, 20 heads, " + n,
                [&] { return sparse_mla_case(256, 20, keys, dtype, false); });
      suite.add("decode 1 query, 20 heads, " + n,
                [&] { return sparse_mla_case(1, 20, keys, dtype, true); });
    }
    suite.add("prefill 32 queries, 20 heads, 16K keys " + type,
              [&] { return sparse_mla_case(32, 20, 16384, dtype, true); });
    suite.add("prefill 256 queries, 64 heads, 16K keys " + type,
              [&] { return sparse_mla_case(256, 64, 16384, dtype, false); });
    suite.add("decode 1 query, 8 heads, 16K keys " + type,
              [&] { return sparse_mla_case(1, 8, 16384, dtype, true); });
  }
  suite.write();
}
