#include "indexcache/search/pattern_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "indexcache/base/error.h"
#include "search/toy_loss.h"

namespace indexcache {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

PatternFile example(std::optional<int> keep = {}) {
  const ToyLoss toy(8, 6, 1);
  SearchOptions options;
  options.strategy = Strategy::kRouted;
  options.start = Pattern::full(8);
  options.keep = keep;
  const auto result = search_patterns(options, [&](const Pattern&, const auto& patterns) {
    std::vector<Losses> losses;
    for (const Pattern& pattern : patterns) losses.push_back(toy(pattern));
    return losses;
  });
  SearchSetup setup;
  setup.model_sha256 = std::string(64, 'a');
  setup.num_layers = 8;
  setup.text_sha256 = std::string(64, 'b');
  setup.context = 512;
  setup.num_sequences = 6;
  setup.seed = 18446744073709551615u;
  setup.retrieval_share = 0.5;
  setup.index_key_dtype = "fp32";
  setup.device = "cpu";
  setup.strategy = options.strategy;
  setup.keep = keep;
  setup.start = options.start;
  return make_pattern_file(setup, result, 123);
}

TEST(PatternFile, ReadsWhatItWrites) {
  for (const auto& keep : {std::optional<int>(), std::optional<int>(3)}) {
    const auto file = example(keep);
    const auto text = to_json(file).dump(2);
    const auto again = parse_pattern_file(text, "file");
    EXPECT_EQ(again.setup, file.setup);
    EXPECT_EQ(to_json(again).dump(2), text);
    EXPECT_EQ(again.budgets.size(), keep ? 5u : 7u);
  }
}

TEST(PatternFile, SaysWhatAScreeningComputedBesideLayers) {
  auto file = example();
  EXPECT_FALSE(to_json(file).contains("attention_runs"));
  file.attention_runs = 135;
  const auto text = to_json(file).dump(2);
  EXPECT_EQ(parse_pattern_file(text, "file").attention_runs, 135);
  EXPECT_EQ(to_json(parse_pattern_file(text, "file")).dump(2), text);
}

TEST(PatternFile, BudgetsAreSelectedByKeep) {
  const auto file = example();
  EXPECT_EQ(file.at("2", "f").num_full(), 2);
  EXPECT_EQ(file.at("1/2", "f").num_full(), 4);
  EXPECT_EQ(file.at("8", "f"), Pattern::full(8));  // the start schedule
  EXPECT_EQ(example(3).at(std::nullopt, "f").num_full(), 3);
  const auto error_of = [&](std::optional<std::string_view> keep) {
    try {
      example(3).at(keep, "p.json");
      if (!keep) file.at(keep, "p.json");
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error_of("2"),
            "p.json: expected a budget of 7, 6, 5, 4, 3 Full layers (FILE:KEEP), found 2");
  EXPECT_THAT(error_of(std::nullopt), HasSubstr("found no KEEP"));
  EXPECT_THAT(error_of("9"), HasSubstr("p.json"));
  EXPECT_THAT(error_of("x"), HasSubstr("p.json"));
}

TEST(PatternFile, StandardErrorIsThatOfThePairedDifference) {
  // Differences 1, 2, 3, 6: mean 3, sample variance 14/3, standard error sqrt(14/3/4).
  const Losses a{{11, 22, 33, 46}}, b{{10, 20, 30, 40}};
  EXPECT_NEAR(paired_standard_error(a, b), std::sqrt(14.0 / 12.0), 1e-12);
  EXPECT_EQ(paired_standard_error({{1}}, {{2}}), 0);
}

TEST(PatternFile, AgreementComparesSourcesAtSharedBudgets) {
  auto a = example(), b = example(2);
  EXPECT_EQ(compare_budgets(a, b).both, 6);
  EXPECT_EQ(compare_budgets(a, b).same, 6);
  auto& changed = b.budgets[2].pattern;
  ASSERT_NE(changed, Pattern::uniform(2, 8));
  changed = changed.as_nearest() == changed ? Pattern::parse("FSSSFFFF", 8) : changed.as_nearest();
  EXPECT_EQ(compare_budgets(a, b).same, 5);
  EXPECT_EQ(compare_budgets(a, b).different, std::vector<int>{5});
}

struct Hostile {
  std::function<void(json&)> spoil;
  const char* error;
};

TEST(PatternFile, HostileFilesGiveOneClearError) {
  const std::vector<Hostile> cases = {
      {[](json& f) { f = 3; }, "f: expected an object, found 3"},
      {[](json& f) { f.erase("format"); }, "f: format: expected"},
      {[](json& f) { f["version"] = 2; }, "f: version: expected 1, found 2"},
      {[](json& f) { f["version"] = "1"; }, "f: version: expected 1, found \"1\""},
      {[](json& f) { f.erase("model"); }, "f: model: expected a value, found none"},
      {[](json& f) { f["model"] = json::array(); }, "f: model: expected an object"},
      {[](json& f) { f["model"]["num_layers"] = 0; },
       "f: model: num_layers: expected an integer from 1"},
      {[](json& f) { f["model"]["num_layers"] = 1e300; }, "f: model: num_layers"},
      {[](json& f) { f["model"]["num_layers"] = 18446744073709551615u; }, "f: model: num_layers"},
      {[](json& f) { f["model"]["num_layers"] = 9; },
       "f: start: sources: expected a source for each of 9 layers"},
      {[](json& f) { f["calibration"]["seed"] = -1; }, "f: calibration: seed"},
      {[](json& f) { f["calibration"]["tasks"] = nullptr; }, "f: calibration: tasks"},
      {[](json& f) { f["strategy"] = "magic"; }, "f: strategy: strategy: expected greedy"},
      {[](json& f) { f["budgets"] = json::object(); }, "f: budgets: expected a list"},
      {[](json& f) { f["budgets"][0]["sources"][3] = 2.5; },
       "f: budgets[0]: sources[3]: expected an integer from -1 to 7"},
      {[](json& f) { f["budgets"][0]["sources"][3] = 7; },
       "source of layer 3: expected -1 or an earlier Full layer, found 7"},
      {[](json& f) { f["budgets"][0]["sources"][0] = 0; }, "layer 0"},
      {[](json& f) { f["budgets"][0]["count"] = 3; },
       "f: budgets[0]: count: expected 7, the Full layers of its sources, found 3"},
      {[](json& f) { f["budgets"][1] = f["budgets"][0]; },
       "f: budgets[1]: count: expected less than"},
      {[](json& f) { f["budgets"][0]["loss"] = "low"; },
       "f: budgets[0]: loss: expected a finite number, found \"low\""},
      {[](json& f) { f["layer_runs"] = -1; }, "f: layer_runs"},
      {[](json& f) { f["attention_runs"] = "many"; }, "f: attention_runs"},
  };
  const json good = to_json(example());
  for (const Hostile& hostile : cases) {
    json bad = good;
    hostile.spoil(bad);
    try {
      parse_pattern_file(bad.dump(), "f");
      ADD_FAILURE() << "accepted: " << hostile.error;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(hostile.error));
      EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("\n")));
    }
  }
  const auto text = good.dump(2);
  for (std::size_t length = 0; length < text.size(); length += 7) {
    EXPECT_THROW(parse_pattern_file(text.substr(0, length), "f"), InputError);
  }
  EXPECT_THROW(parse_pattern_file(std::string(100000, '['), "f"), InputError);
  EXPECT_THROW(parse_pattern_file("\xff\xfe", "f"), InputError);
}

}  // namespace
}  // namespace indexcache
