// Parity with Hugging Face transformers: logits and index sets of the golden models, however the
// prompt is cut.
#include "model/golden.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "indexcache/base/error.h"
#include "indexcache/checkpoint/checkpoint.h"
#include "model/margins.h"
#include "support/thrown.h"

namespace indexcache::testing {

namespace {

constexpr double kLogitTolerance = 1e-4;
constexpr double kClearMargin = 1e-4;      // far above fp32 rounding of scores of order 1
constexpr double kMarginTolerance = 5e-6;  // of a recorded margin: three digits, from double scores

const std::vector<std::string> kGoldens = {
    "deepseek_fp8_ue8m0", "deepseek_interleaved", "deepseek_yarn",  "glm_fp8",
    "glm_full",           "glm_half_split",       "glm_latent_eps", "glm_mixed"};

// The models are far too small to share: on a busy machine, threads cost a hundred times the work.
class OneThread : public ::testing::Environment {
  void SetUp() override { at::set_num_threads(1); }
};
const auto* const kOneThread = ::testing::AddGlobalTestEnvironment(new OneThread);

Model load(const Expectation& expected) {
  return Model::load(Checkpoint::open(expected.folder()),
                     {.latent_norm_eps = expected.latent_norm_eps});
}

// How a prompt of T tokens may be cut: a name, the chunk, the forward calls.
struct Cut {
  std::string name;
  std::int64_t chunk;
  std::vector<std::int64_t> calls;
};

std::vector<Cut> cuts(std::int64_t num_tokens) {
  std::vector<std::int64_t> prefill_then_decode(41, 1);
  prefill_then_decode[0] = num_tokens - 40;
  return {{"whole", 4096, {}},
          {"chunks of 64", 64, {}},
          {"chunks of 7", 7, {}},
          {"prefill, then decode", 4096, prefill_then_decode},
          {"token by token", 4096, std::vector<std::int64_t>(num_tokens, 1)}};
}

class Golden : public ::testing::TestWithParam<std::string> {};

TEST_P(Golden, HasClearMargins) {
  for (const auto& expected : read_golden(GetParam())) {
    const auto model = load(expected);
    const auto measured =
        measure_margins(model, pattern_of(expected.pattern, model), expected.tokens);
    EXPECT_GE(measured.index, kClearMargin) << expected.file;
    EXPECT_GE(measured.router, kClearMargin) << expected.file;
    EXPECT_NEAR(measured.index, expected.index_margin, kMarginTolerance) << expected.file;
    EXPECT_NEAR(measured.router, expected.router_margin, kMarginTolerance) << expected.file;
    for (const auto& [layer, set] : expected.index_sets) {
      EXPECT_LE(4 * set.size(1), expected.tokens.size(0)) << "k is far below the context";
    }
  }
}

TEST_P(Golden, LogitsAndIndexSetsEqualTransformers) {
  for (const auto& expected : read_golden(GetParam())) {
    const auto model = load(expected);
    const auto pattern = pattern_of(expected.pattern, model);
    double largest = 0;
    for (const auto& cut : cuts(expected.tokens.size(0))) {
      SCOPED_TRACE(expected.golden + "/" + expected.file + ", " + cut.name);
      const auto outcome = run_model(model, pattern, expected.tokens, cut.chunk, cut.calls);
      const auto difference = largest_difference(outcome.logits, expected.logits);
      EXPECT_LE(difference, kLogitTolerance);
      largest = std::max(largest, difference);

      ASSERT_EQ(outcome.index_sets.size(), expected.index_sets.size());
      for (const auto& [layer, set] : expected.index_sets) {
        ASSERT_TRUE(outcome.index_sets.contains(layer)) << "layer " << layer;
        EXPECT_TRUE(set.equal(outcome.index_sets.at(layer))) << "layer " << layer;
      }
    }
    fmt::print("{}/{} ({}): largest logit error {:.1e}\n", expected.golden, expected.file,
               expected.pattern, largest);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, ::testing::ValuesIn(kGoldens),
                         [](const auto& info) { return info.param; });

TEST(Goldens, TheListIsTheFolder) {
  std::set<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder())) {
    found.insert(entry.path().filename());
  }
  EXPECT_EQ(found, std::set<std::string>(kGoldens.begin(), kGoldens.end()));
}

TEST(Goldens, ThreadsDoNotMatter) {
  const auto expected = read_golden("glm_full").at(0);
  const auto model = load(expected);
  at::set_num_threads(4);
  const auto outcome = run_model(model, model.config().schedule, expected.tokens, 64);
  at::set_num_threads(1);
  EXPECT_LE(largest_difference(outcome.logits, expected.logits), kLogitTolerance);
  for (const auto& [layer, set] : expected.index_sets) {
    EXPECT_TRUE(set.equal(outcome.index_sets.at(layer))) << "layer " << layer;
  }
}

TEST(Goldens, ALatentNormEpsilonThatIsNoSmallNumberIsRefused) {
  const auto checkpoint = Checkpoint::open(golden_folder() / "glm_full");
  for (const double eps : {0.0, -1e-6, std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity()}) {
    const auto message =
        thrown<InputError>([&] { Model::load(checkpoint, {.latent_norm_eps = eps}); });
    EXPECT_NE(message.find("latent norm epsilon: expected a finite number above 0, found"),
              std::string::npos)
        << message;
  }
}

// transformers uses 1e-6 in GLM's latent norms whatever rms_norm_eps says (model spec 2.1): the
// folder compares only with the switch.
TEST(Goldens, LatentNormEpsilonMatters) {
  auto expected = read_golden("glm_latent_eps").at(0);
  ASSERT_EQ(expected.latent_norm_eps, 1e-6);
  expected.latent_norm_eps.reset();
  const auto model = load(expected);
  ASSERT_EQ(model.config().rms_norm_eps, 1e-5);
  const auto outcome = run_model(model, model.config().schedule, expected.tokens, 4096);
  EXPECT_GT(largest_difference(outcome.logits, expected.logits), 10 * kLogitTolerance);
}

}  // namespace
}  // namespace indexcache::testing
