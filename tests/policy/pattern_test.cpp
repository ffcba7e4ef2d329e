#include "indexcache/policy/pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::thrown;

std::string parse_error(const std::string& text, int num_layers) {
  return thrown<InputError>([&] { Pattern::parse(text, num_layers); });
}

// The definition (docs/patterns.md), said once more: layer 0 is Full, a source is an earlier Full layer.
bool is_pattern(const std::vector<int>& sources) {
  for (int layer = 0; layer < static_cast<int>(sources.size()); ++layer) {
    if (sources[layer] == -1) continue;
    if (sources[layer] < 0 || sources[layer] >= layer || sources[sources[layer]] != -1) {
      return false;
    }
  }
  return !sources.empty() && sources[0] == -1;
}

// Calls visit with every list of `length` numbers in [-2, length].
template <typename Visit>
void for_each_list(int length, const Visit& visit) {
  std::vector<int> list(length, -2);
  while (true) {
    visit(list);
    int digit = 0;
    while (digit < length && list[digit] == length) list[digit++] = -2;
    if (digit == length) return;
    ++list[digit];
  }
}

// Any pattern of up to 40 layers.
rc::Gen<Pattern> any_pattern() {
  return rc::gen::exec([] {
    const int num_layers = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(1, 41));
    std::vector<int> sources, full;
    for (int layer = 0; layer < num_layers; ++layer) {
      const bool is_full = layer == 0 || *rc::gen::element(true, false, false);
      sources.push_back(is_full ? Pattern::kFull : *rc::gen::elementOf(full));
      if (is_full) full.push_back(layer);
    }
    return Pattern::from_sources(sources);
  });
}

TEST(Pattern, AcceptsExactlyWhatTheDefinitionSays) {
  // The patterns of n layers are the restricted growth strings: Bell numbers. Nearest ones: 2^(n-1).
  const std::vector<int> bell = {1, 2, 5, 15, 52};
  for (int length = 1; length <= 5; ++length) {
    int accepted = 0, nearest = 0;
    for_each_list(length, [&](const std::vector<int>& sources) {
      if (is_pattern(sources)) {
        const Pattern pattern = Pattern::from_sources(sources);
        EXPECT_EQ(pattern.sources(), sources);
        ++accepted;
        nearest += pattern.is_nearest();
      } else {
        EXPECT_THROW(Pattern::from_sources(sources), InputError);
      }
    });
    EXPECT_EQ(accepted, bell[length - 1]);
    EXPECT_EQ(nearest, 1 << (length - 1));
  }
}

RC_GTEST_PROP(PatternProperty, TextGivesThePatternBack, ()) {
  const Pattern pattern = *any_pattern();
  RC_ASSERT(Pattern::parse(pattern.str(), pattern.num_layers()) == pattern);
  RC_ASSERT((pattern.str().find(',') == std::string::npos) == pattern.is_nearest());
}

RC_GTEST_PROP(PatternProperty, ReadersAreTheLayersWithThatSource, ()) {
  const Pattern pattern = *any_pattern();
  int read = 0;
  for (int layer = 0; layer < pattern.num_layers(); ++layer) {
    const auto readers = pattern.readers(layer);
    read += static_cast<int>(readers.size());
    if (!pattern.is_full(layer)) {
      RC_ASSERT(readers.empty());
      continue;
    }
    RC_ASSERT(readers.front() == layer);
    RC_ASSERT(readers.back() == pattern.last_reader(layer));
    for (std::size_t i = 1; i < readers.size(); ++i) {
      RC_ASSERT(readers[i - 1] < readers[i]);
      RC_ASSERT(pattern.source(readers[i]) == layer);
    }
  }
  RC_ASSERT(read == pattern.num_layers());  // every layer reads one index set
  RC_ASSERT(static_cast<int>(pattern.full_layers().size()) == pattern.num_full());
}

RC_GTEST_PROP(PatternProperty, WithSharedMovesTheLayerAndItsReadersOnly, ()) {
  const Pattern pattern = *any_pattern();
  const auto full = pattern.full_layers();
  RC_PRE(full.size() >= 2u);
  const int chosen = *rc::gen::inRange(1, static_cast<int>(full.size()));
  const int layer = full[chosen];
  const int source = full[*rc::gen::inRange(0, chosen)];

  const Pattern moved = pattern.with_shared(layer, source);
  RC_ASSERT(is_pattern(moved.sources()));
  RC_ASSERT(moved.num_full() == pattern.num_full() - 1);
  for (int other = 0; other < pattern.num_layers(); ++other) {
    const bool follows = other == layer || pattern.source(other) == layer;
    RC_ASSERT(moved.source(other) == (follows ? source : pattern.source(other)));
  }
}

// A Full layer is left, an earlier Full one takes over: nearest patterns stay nearest where that is the one just below.
RC_GTEST_PROP(PatternProperty, SharingWithTheFullLayerBelowKeepsAPatternNearest, ()) {
  const Pattern pattern = (*any_pattern()).as_nearest();
  const auto full = pattern.full_layers();
  RC_PRE(full.size() >= 2u);
  const int chosen = *rc::gen::inRange(1, static_cast<int>(full.size()));
  const Pattern moved = pattern.with_shared(full[chosen], full[chosen - 1]);
  RC_ASSERT(moved.is_nearest());
  auto rest = full;
  rest.erase(rest.begin() + chosen);
  RC_ASSERT(moved == Pattern::nearest(rest, pattern.num_layers()));
}

RC_GTEST_PROP(PatternProperty, WithSourceChangesOneLayer, ()) {
  const Pattern pattern = *any_pattern();
  RC_PRE(pattern.num_full() < pattern.num_layers());
  const int layer = *rc::gen::suchThat(rc::gen::inRange(1, pattern.num_layers()),
                                       [&](int l) { return !pattern.is_full(l); });
  const int source =
      *rc::gen::suchThat(rc::gen::inRange(0, layer), [&](int l) { return pattern.is_full(l); });
  auto sources = pattern.sources();
  sources[layer] = source;
  RC_ASSERT(pattern.with_source(layer, source).sources() == sources);
}

RC_GTEST_PROP(PatternProperty, AsNearestKeepsTheFullLayersAndReadsTheOneBelow, ()) {
  const Pattern pattern = *any_pattern();
  const Pattern nearest = pattern.as_nearest();
  RC_ASSERT(nearest.full_layers() == pattern.full_layers());
  RC_ASSERT(nearest.is_nearest());
  int below = 0;
  for (int layer = 0; layer < pattern.num_layers(); ++layer) {
    if (pattern.is_full(layer)) below = layer;
    RC_ASSERT(nearest.source(layer) == (pattern.is_full(layer) ? -1 : below));
  }
}

TEST(Pattern, ParsesEveryForm) {
  EXPECT_THAT(Pattern::parse("FSSFS", 5).sources(), ElementsAre(-1, 0, 0, -1, 3));
  EXPECT_THAT(Pattern::parse("-1,0,-1,0", 4).sources(), ElementsAre(-1, 0, -1, 0));
  EXPECT_EQ(Pattern::parse("full", 3).str(), "FFF");
  EXPECT_EQ(Pattern::parse("uniform:1/4", 10).str(), "FSSSFSSSFS");
  EXPECT_EQ(Pattern::parse("uniform:1/1", 3).str(), "FFF");
  EXPECT_EQ(Pattern::parse("uniform:1/100", 3).str(), "FSS");
  EXPECT_EQ(Pattern::parse("freq:4", 10).str(), "FFSSSFSSSF");
  EXPECT_EQ(Pattern::parse("F", 1).str(), "F");
  // A source list whose sources are all nearest is the nearest pattern, and prints as one.
  EXPECT_EQ(Pattern::parse("-1,0,0", 3).str(), "FSS");
}

TEST(Pattern, FrequencyFollowsTheEnginesRule) {
  // Worked values of max(l - offset + 1, 0) mod n == 0, as vLLM, SGLang and transformers compute it.
  EXPECT_THAT(Pattern::every_nth(2, 2, 9).full_layers(), ElementsAre(0, 1, 3, 5, 7));
  EXPECT_THAT(Pattern::every_nth(4, 2, 16).full_layers(), ElementsAre(0, 1, 5, 9, 13));
  EXPECT_THAT(Pattern::every_nth(4, 3, 16).full_layers(), ElementsAre(0, 1, 2, 6, 10, 14));
  EXPECT_THAT(Pattern::every_nth(4, 1, 10).full_layers(), ElementsAre(0, 4, 8));
  EXPECT_EQ(Pattern::every_nth(1, 2, 5), Pattern::full(5));
  EXPECT_EQ(Pattern::every_nth(4, 2, 61).num_full(), 16);
  EXPECT_EQ(Pattern::every_nth(4, 2, 47).num_full(), 13);
  // GLM-5.2: 78 layers, every fourth, offset 3: 0, 1, 2, 6, ..., 74.
  const Pattern glm = Pattern::parse("freq:4:3", 78);
  EXPECT_EQ(glm.num_full(), 21);
  EXPECT_EQ(glm.full_layers().back(), 74);
  // Offset 1 is the paper's uniform schedule.
  for (int n = 1; n <= 8; ++n) EXPECT_EQ(Pattern::every_nth(n, 1, 30), Pattern::uniform(n, 30));
}

// The patterns that the paper (arXiv 2603.12201, appendix B) publishes.
const std::string kPaper30bHalf = "FSFSFSSSSFSFFFFSFFSSFFSFFFSSFFSSFSSSSFSFFFSFSSF";
const std::string kPaper30bQuarter = "FSFSFSSSSFSSSFSSFFSSFSSFSSSSFSSSFSSSSFSSSSSSSSS";
const std::string kPaper30bEighth = "FSSSFSSSSSSSSFSSSFSSSSSFSSSSFSSSSSSSSFSSSSSSSSS";
const std::string kPaperGlm5Half =
    "FFSFSSSFSSFFFSSSFFFSFSSSSSSFFSFFSFFSSFFFFFFSFFFFFSFFSSSSSSFSFFFSFSSSFSFFSFFSSS";
const std::string kPaperGlm5Quarter =
    "FFSFSSSFSSFSFSSSSSSSFSSSSSSFSSSFSFSSSSFFFFFSSSFFSSSFSSSSSSSSFSSSFSSSSSSFSFSSSS";

TEST(Pattern, ReadsThePapersPatterns) {
  EXPECT_EQ(Pattern::parse(kPaper30bHalf, 47).num_full(), 24);
  EXPECT_THAT(Pattern::parse(kPaper30bQuarter, 47).full_layers(),
              ElementsAre(0, 2, 4, 9, 13, 16, 17, 20, 23, 28, 32, 37));
  EXPECT_THAT(Pattern::parse(kPaper30bEighth, 47).full_layers(),
              ElementsAre(0, 4, 13, 17, 23, 28, 37));
  EXPECT_EQ(Pattern::parse(kPaper30bQuarter, 47).readers(37).size(),
            10u);  // itself and the last nine
  EXPECT_EQ(Pattern::parse(kPaperGlm5Half, 78).num_full(), 40);
  EXPECT_EQ(Pattern::parse(kPaperGlm5Quarter, 78).num_full(), 22);
  EXPECT_EQ(Pattern::uniform(8, 47).num_full(), 6);
  for (const auto& text : {kPaper30bHalf, kPaper30bQuarter, kPaper30bEighth}) {
    EXPECT_EQ(Pattern::parse(text, 47).str(), text);
  }
}

TEST(Pattern, ThePapersPatternsAreNested) {
  // Greedy removal only removes: the smaller budget's Full layers are Full in the larger one.
  const auto expect_nested = [](const std::string& smaller, const std::string& larger) {
    for (std::size_t layer = 0; layer < smaller.size(); ++layer) {
      EXPECT_TRUE(smaller[layer] == 'S' || larger[layer] == 'F') << "layer " << layer;
    }
    const int num_layers = static_cast<int>(smaller.size());
    Pattern pattern = Pattern::parse(larger, num_layers);
    const Pattern target = Pattern::parse(smaller, num_layers);
    // Removing the difference one layer at a time, each read by the Full layer below, leads there.
    for (const int layer : Pattern::parse(larger, num_layers).full_layers()) {
      if (target.is_full(layer)) continue;
      int below = layer - 1;
      while (!pattern.is_full(below)) --below;
      pattern = pattern.with_shared(layer, below);
    }
    EXPECT_EQ(pattern, target);
  };
  expect_nested(kPaper30bQuarter, kPaper30bHalf);
  expect_nested(kPaper30bEighth, kPaper30bQuarter);
  expect_nested(kPaperGlm5Quarter, kPaperGlm5Half);
}

TEST(Pattern, RoutedMoveCarriesReadersAlong) {
  const Pattern pattern = Pattern::parse("FFSFS", 5);  // sources -1 -1 1 -1 3
  EXPECT_THAT(pattern.with_shared(3, 0).sources(), ElementsAre(-1, -1, 1, 0, 0));
  EXPECT_EQ(pattern.with_shared(3, 0).str(), "-1,-1,1,0,0");
  EXPECT_THAT(pattern.with_shared(1, 0).sources(), ElementsAre(-1, 0, 0, -1, 3));
  EXPECT_EQ(pattern.with_source(4, 1).str(), "-1,-1,1,-1,1");
  EXPECT_EQ(pattern.last_reader(0), 0);
  EXPECT_EQ(pattern.with_source(4, 0).last_reader(0), 4);
}

TEST(PatternErrors, NameWhatWasExpectedAndFound) {
  EXPECT_EQ(parse_error("FSSF", 5), "pattern \"FSSF\": expected 5 layers, found 4");
  EXPECT_EQ(parse_error("-1,0", 3), "pattern \"-1,0\": expected 3 layers, found 2");
  EXPECT_EQ(parse_error("SFFF", 4), "pattern \"SFFF\": layer 0: expected F, found S");
  EXPECT_EQ(parse_error("0,-1", 2),
            "pattern: source of layer 0: expected -1 (layer 0 is Full), found 0");
  EXPECT_EQ(
      parse_error("-1,0,1", 3),
      "pattern: source of layer 2: expected an earlier Full layer, found layer 1, which is Shared");
  EXPECT_EQ(parse_error("-1,2,-1", 3),
            "pattern: source of layer 1: expected -1 or an earlier Full layer, found 2");
  EXPECT_EQ(parse_error("-1,1", 2),
            "pattern: source of layer 1: expected -1 or an earlier Full layer, found 1");
  EXPECT_EQ(parse_error("-1,-2", 2),
            "pattern: source of layer 1: expected -1 or an earlier Full layer, found -2");
  EXPECT_EQ(
      parse_error("freq:4:0", 8),
      "pattern freq:n:offset: expected an offset of 1 or more (else layer 0 is not Full), found 0");
  EXPECT_EQ(parse_error("freq:0", 8), "pattern freq:n: expected n of 1 or more, found 0");
  EXPECT_EQ(parse_error("freq:1:2:3", 8),
            "pattern \"freq:1:2:3\": expected freq:n or freq:n:offset, found 3 fields");
  EXPECT_EQ(parse_error("uniform:1/0", 8), "pattern uniform:1/n: expected n of 1 or more, found 0");
  EXPECT_EQ(parse_error("uniform:2/4", 8),
            "pattern \"uniform:2/4\": expected uniform:1/n, found \"uniform:2/4\"");
  EXPECT_EQ(parse_error("uniform:1/x", 8),
            "pattern \"uniform:1/x\": expected a number after uniform:1/, found \"x\"");
}

TEST(PatternErrors, RefuseTextThatIsNoPattern) {
  for (const std::string text :
       {"", " ", "fssf", "FSXF", "FS SF", "freq:", "freq::2", "freq:4:", "freq:4x", "uniform:1/",
        "-1,,0", "-1,0,", "-1, 0", "+1", "-1;0", "99999999999999999999", "full,full"}) {
    EXPECT_THAT(parse_error(text, 4), HasSubstr("expected")) << text;
  }
  EXPECT_THAT(
      parse_error("hello", 4),
      HasSubstr(
          "expected full, uniform:1/n, freq:n[:offset], a string of F and S, or a source list"));
}

TEST(PatternErrors, StayOneReadableLine) {
  const std::string hostile = "F\n\x1b[31m\xff" + std::string(100000, 'S');
  const std::string message = parse_error(hostile, 4);
  EXPECT_EQ(message.find_first_of("\n\x1b\xff"), std::string::npos);
  EXPECT_LT(message.size(), 400u);
  EXPECT_THAT(message, HasSubstr("F\\x0a\\x1b[31m\\xffSSS"));
}

TEST(PatternErrors, OfTheOtherConstructors) {
  EXPECT_EQ(thrown<InputError>([] { Pattern::full(0); }),
            "pattern: expected at least one layer, found 0");
  EXPECT_THROW(Pattern::uniform(2, -1), InputError);
  EXPECT_THROW(Pattern::from_sources({}), InputError);
  EXPECT_EQ(thrown<InputError>([] {
              Pattern::nearest({1, 2}, 4);
            }),
            "pattern: layer 0: expected Full, found Shared");
  EXPECT_EQ(thrown<InputError>([] {
              Pattern::nearest({0, 4}, 4);
            }),
            "pattern: Full layer: expected a layer in [0, 4), found 4");
  EXPECT_EQ(Pattern::nearest({2, 0}, 4).str(), "FSFS");
  const Pattern pattern = Pattern::full(4);
  EXPECT_THAT(thrown<InputError>([&] { pattern.with_shared(0, 0); }), HasSubstr("layer 0 is Full"));
  EXPECT_THAT(thrown<InputError>([&] { pattern.with_shared(1, 2); }),
              HasSubstr("source of layer 1"));
  EXPECT_THAT(thrown<InputError>([&] { pattern.with_shared(2, 1).with_shared(3, 2); }),
              HasSubstr("layer 2, which is Shared"));
}

TEST(Keep, CountsAndFractionsRoundedUp) {
  EXPECT_EQ(parse_keep("12", 47), 12);
  EXPECT_EQ(parse_keep("1/2", 47), 24);
  EXPECT_EQ(parse_keep("1/4", 47), 12);
  EXPECT_EQ(parse_keep("1/8", 47), 6);
  EXPECT_EQ(parse_keep("3/3", 5), 5);
  EXPECT_EQ(parse_keep("1/1000", 5), 1);
  EXPECT_EQ(parse_keep("2147483647/2147483647", 80), 80);
}

TEST(Keep, RefusesTheRest) {
  const auto error = [](const std::string& text) {
    return thrown<InputError>([&] { parse_keep(text, 16); });
  };
  EXPECT_EQ(error("17"), "keep: expected 1 to 16 Full layers, found \"17\"");
  EXPECT_EQ(error("0"), "keep: expected 1 to 16 Full layers, found \"0\"");
  EXPECT_EQ(error("17/16"), "keep: expected 1 to 16 Full layers, found \"17/16\"");
  EXPECT_EQ(error("2147483647/1"), "keep: expected 1 to 16 Full layers, found \"2147483647/1\"");
  for (const std::string text :
       {"", "/", "1/", "/2", "1/0", "0/2", "-1/2", "1/-2", "half", "1/2/3", "1.5"}) {
    EXPECT_EQ(error(text), "keep: expected a count or a fraction a/b, found \"" + text + "\"");
  }
}

}  // namespace
}  // namespace indexcache
