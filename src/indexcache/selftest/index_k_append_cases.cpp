#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>
#include <fmt/format.h>

#include "indexcache/kernels/index_key_type.h"
#include "indexcache/kernels/index_page.h"
#include "indexcache/ops/index_k_append/index_k_append_params.h"
#include "indexcache/selftest/cases.h"
#include "indexcache/selftest/e4m3_checks.h"
#include "indexcache/selftest/index_inputs.h"

namespace indexcache {

void index_k_append_cases(const SelfTestRun& run,
                          const std::function<decltype(index_k_append)>& op) {
  constexpr std::int64_t kTokens = 150, kPages = 4;
  for (const IndexKeyType& type : index_key_types()) {
    const auto keys = index_rows(kTokens, run.generator);
    const auto table = angle_table();
    const auto positions = at::randint(0, table.size(0), {kTokens}, run.generator, at::kLong);
    const auto slots = at::randperm(kPages * kIndexPageKeys, run.generator).narrow(0, 0, kTokens);
    const auto result = [&] {
      const auto pages = at::full({kPages, kIndexPageBytes}, 0xA5, at::kByte).to(run.device);
      op(keys.to(run.device), table.to(run.device), positions.to(run.device), slots.to(run.device),
         {pages, type}, kDefaultAmaxFloor);
      return pages.cpu();
    };
    const auto expected = at::empty({kTokens, kIndexDim}, at::kDouble);
    index_k_append_ref({.num_tokens = kTokens,
                        .dtype = IndexRowDType::kFloat32,
                        .keys = keys.const_data_ptr(),
                        .rope = {table.const_data_ptr<float>(), table.size(0),
                                 positions.const_data_ptr<std::int64_t>()},
                        .type = type},
                       expected.mutable_data_ptr<double>());
    const at::Tensor found = result(), again = result();
    const auto bytes = found.narrow(1, 0, index_scale_offset(0)).reshape({-1, kIndexDim});
    const auto scales = found.narrow(1, index_scale_offset(0), 4 * kIndexPageKeys)
                            .contiguous()
                            .view(at::kFloat)
                            .flatten();
    Verdict verdict =
        check_e4m3_rows(bytes.index_select(0, slots), scales.index_select(0, slots), expected,
                        rotation_error(keys, type), type.scale, kDefaultAmaxFloor);
    // Slots that were not given keep what they held.
    const auto untouched = bytes.index_fill(0, slots, 0xA5);
    verdict =
        both(verdict, check_equal(untouched.to(at::kInt), at::full(bytes.sizes(), 0xA5, at::kInt)));
    verdict = both(verdict, check_same_bits(found, again));
    run.report({"index_k_append", fmt::format("{}, {} tokens", print_index_key_type(type), kTokens),
                verdict.worst, verdict.failure});
  }
}

}  // namespace indexcache
