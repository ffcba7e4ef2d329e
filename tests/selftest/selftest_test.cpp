#include "indexcache/selftest/selftest.h"

#include <gtest/gtest.h>

namespace indexcache {
namespace {

TEST(SelfTest, PassesOnTheCpuAndCoversBothOps) {
  std::size_t seen = 0, topk = 0, mla = 0;
  const auto results = run_selftest(at::kCPU, [&](const SelfTestCase&) { ++seen; });
  EXPECT_EQ(seen, results.size());
  for (const auto& result : results) {
    EXPECT_EQ(result.failure, "") << result.op << ": " << result.name;
    topk += result.op == "index_topk";
    mla += result.op == "sparse_mla";
  }
  EXPECT_GE(topk, 8u);
  EXPECT_GE(mla, 4u);
}

}  // namespace
}  // namespace indexcache
