#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "indexcache/model/model.h"

namespace indexcache {
namespace {

// DeepSeek-V3.2's RoPE: theta 10000, YaRN x40 from 4096 (spec 2.2 and T7).
ModelConfig deepseek_rope() {
  ModelConfig config;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.rope.theta = 10000.0;
  config.rope.yarn = YarnConfig{.factor = 40};
  return config;
}

TEST(RopeFrequencies, PlainIsTheGeometricSeries) {
  ModelConfig config;
  config.qk_rope_head_dim = 64;
  config.rope.theta = 8e6;
  const auto found = rope_frequencies(config);
  ASSERT_EQ(found.inv_freq.numel(), 32);
  EXPECT_EQ(found.amplitude, 1.0);
  for (int i = 0; i < 32; ++i) {
    const double expected = std::pow(8e6, -2.0 * i / 64);
    EXPECT_NEAR(found.inv_freq[i].item<float>(), expected, 4e-6 * expected) << i;
  }
}

TEST(RopeFrequencies, YarnKeepsLowIndicesAndInterpolatesHighOnes) {
  const auto found = rope_frequencies(deepseek_rope());
  EXPECT_EQ(found.amplitude, 1.0);  // mscale == mscale_all_dim
  for (int i = 0; i < 32; ++i) {
    const double plain = std::pow(10000.0, -2.0 * i / 64);
    const double ramp = std::clamp((i - 10.0) / 13.0, 0.0, 1.0);  // low 10, high 23
    const double expected = plain * (1 - ramp) + plain / 40 * ramp;
    EXPECT_NEAR(found.inv_freq[i].item<float>(), expected, 4e-6 * expected) << i;
  }
}

TEST(RopeFrequencies, YarnSoftmaxScale) {
  EXPECT_NEAR(deepseek_rope().softmax_scale(), 0.1352337789, 1e-10);
}

}  // namespace
}  // namespace indexcache
