#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <cmath>

#include "indexcache/kernels/index_key_type.h"
#include "indexcache/ops/index_q/index_q_params.h"
#include "indexcache/selftest/cases.h"
#include "indexcache/selftest/e4m3_checks.h"
#include "indexcache/selftest/index_inputs.h"

namespace indexcache {

void index_q_cases(const SelfTestRun& run, const std::function<decltype(index_q)>& op) {
  constexpr std::int64_t kHeads = 5, kTokens = 33;
  for (const IndexKeyType& type : index_key_types()) {
    const auto rows = index_rows(kTokens * kHeads, run.generator);
    const auto q = rows.view({kTokens, kHeads, kIndexDim});
    const auto weights = at::randint(1, 9, {kTokens, kHeads}, run.generator, at::kFloat);
    const auto table = angle_table();
    const auto positions = at::randint(0, table.size(0), {kTokens}, run.generator, at::kLong);
    const auto result = [&] {
      return op(q.to(run.device), weights.to(run.device), table.to(run.device),
                positions.to(run.device), type, kDefaultAmaxFloor);
    };
    const auto expected = at::empty({kTokens * kHeads, kIndexDim}, at::kDouble);
    index_q_ref({.num_tokens = kTokens,
                 .num_heads = kHeads,
                 .dtype = IndexRowDType::kFloat32,
                 .q = q.const_data_ptr(),
                 .weights = nullptr,
                 .rope = {table.const_data_ptr<float>(), table.size(0),
                          positions.const_data_ptr<std::int64_t>()},
                 .type = type},
                expected.mutable_data_ptr<double>());
    const IndexQueries found = result(), again = result();
    // What the weights got besides the scale; an fp32 scale comes back up to two roundings.
    const auto factor = weights.to(at::kDouble) / std::sqrt(double{kHeads * kIndexDim});
    const auto scale = (found.weights.cpu().to(at::kDouble) / factor).to(at::kFloat).flatten();
    Verdict verdict =
        check_e4m3_rows(found.q.cpu().view({-1, kIndexDim}).view(at::kByte), scale, expected,
                        rotation_error(rows, type), type.scale, kDefaultAmaxFloor);
    verdict = both(verdict, check_same_bits(found.q.view(at::kByte), again.q.view(at::kByte)));
    verdict = both(verdict, check_same_bits(found.weights, again.weights));
    run.report({"index_q",
                fmt::format("{}, {} tokens, {} heads", print_index_key_type(type), kTokens, kHeads),
                verdict.worst, verdict.failure});
  }
}

}  // namespace indexcache
