#include "indexcache/search/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "support/temporary_folder.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;

SearchSetup setup_with_seed(std::uint64_t seed) {
  SearchSetup setup;
  setup.num_layers = 4;
  setup.start = Pattern::full(4);
  setup.seed = seed;
  return setup;
}

const std::vector<Pattern>& two_patterns() {
  static const std::vector<Pattern> patterns = {Pattern::parse("FFFS", 4),
                                                Pattern::parse("FFSF", 4)};
  return patterns;
}

std::string journal_error(const std::function<void()>& action) {
  try {
    action();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Journal, GivesBackWhatWasAppended) {
  const testing::TemporaryFolder folder;
  const auto path = Journal::path_for(folder.path() / "p.json");
  EXPECT_EQ(path.filename(), "p.json.journal");
  const std::vector<double> losses = {1.0 / 3, 2.0000000000000004};
  {
    Journal journal(path, setup_with_seed(1));
    EXPECT_FALSE(journal.resumed());
    journal.append(0, 2, two_patterns(), losses);
    journal.append(1, 0, two_patterns(), {3, 4});
  }
  Journal journal(path, setup_with_seed(1));
  EXPECT_TRUE(journal.resumed());
  ASSERT_NE(journal.find(0, 2, two_patterns()), nullptr);
  EXPECT_EQ(*journal.find(0, 2, two_patterns()), losses);
  EXPECT_EQ(journal.find(0, 1, two_patterns()), nullptr);
  EXPECT_THAT(journal_error([&] { journal.find(1, 0, {Pattern::full(4)}); }),
              HasSubstr("holds other patterns"));
  journal.remove();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Journal, GivesBackTheIncreasesOfASequence) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "journal";
  const IncreaseMatrix increases = {{}, {1.0 / 3}, {-2e-9, 0}, {1, 2, 3}};
  {
    Journal journal(path, setup_with_seed(1));
    journal.append_increases(2, increases);
  }
  {
    Journal journal(path, setup_with_seed(1));
    EXPECT_TRUE(journal.resumed());
    ASSERT_NE(journal.find_increases(2), nullptr);
    EXPECT_EQ(*journal.find_increases(2), increases);
    EXPECT_EQ(journal.find_increases(0), nullptr);
    EXPECT_EQ(journal.find(0, 2, two_patterns()), nullptr);
    journal.append(0, 2, two_patterns(), {1, 2});
  }
  const Journal journal(path, setup_with_seed(1));
  EXPECT_NE(journal.find_increases(2), nullptr);
  EXPECT_NE(journal.find(0, 2, two_patterns()), nullptr);
}

// A matrix of another model would be read beyond its rows.
TEST(Journal, RefusesIncreasesOfAnotherShape) {
  for (const IncreaseMatrix& increases :
       {IncreaseMatrix{{}, {1}, {1, 2}}, IncreaseMatrix{{}, {1}, {1, 2}, {1, 2}}}) {
    const testing::TemporaryFolder folder;
    const auto path = folder.path() / "journal";
    { Journal(path, setup_with_seed(1)).append_increases(0, increases); }
    EXPECT_THAT(journal_error([&] { Journal journal(path, setup_with_seed(1)); }),
                HasSubstr("line 2: expected a line of a search journal"));
  }
}

TEST(Journal, SurvivesATearAtEveryByte) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "whole";
  {
    Journal journal(path, setup_with_seed(1));
    for (int call = 0; call < 3; ++call) journal.append(call, 0, two_patterns(), {1.5, 2.5});
  }
  const std::string whole = read_file(path);
  for (std::size_t length = 0; length <= whole.size(); length += 5) {
    const auto torn = folder.write("torn", std::string_view(whole).substr(0, length));
    {
      Journal journal(torn, setup_with_seed(1));
      for (int call = 0; call < 3; ++call) {
        if (journal.find(call, 0, two_patterns()) == nullptr) {
          journal.append(call, 0, two_patterns(), {1.5, 2.5});
        }
      }
    }
    EXPECT_EQ(read_file(torn), whole) << length;
  }
}

TEST(Journal, RefusesAnotherSearchsJournal) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "journal";
  { Journal(path, setup_with_seed(1)).append(0, 0, two_patterns(), {1, 2}); }
  const std::string whole = read_file(path);
  EXPECT_THAT(journal_error([&] { Journal journal(path, setup_with_seed(2)); }),
              HasSubstr("other settings (/calibration/seed: 1 there, 2 here)"));
  auto other = setup_with_seed(1);
  other.keep = 2;
  EXPECT_THAT(journal_error([&] { Journal journal(path, other); }), HasSubstr("/keep: none there"));
  EXPECT_EQ(read_file(path), whole);
}

TEST(Journal, WithoutAMeasurementLeavesNoFile) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "journal";
  { const Journal journal(path, setup_with_seed(1)); }
  EXPECT_FALSE(std::filesystem::exists(path));
  {
    Journal journal(path, setup_with_seed(2));
    journal.append(0, 0, two_patterns(), {1, std::numeric_limits<double>::quiet_NaN()});
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  { Journal(path, setup_with_seed(3)).append(0, 0, two_patterns(), {1, 2}); }
  EXPECT_TRUE(std::filesystem::exists(path));
  { const Journal journal(path, setup_with_seed(3)); }  // resumed, and refused before it measured
  EXPECT_TRUE(Journal(path, setup_with_seed(3)).resumed());
}

TEST(Journal, RefusesOtherFilesAndLeavesThemAlone) {
  const testing::TemporaryFolder folder;
  for (const char* contents : {"my notes\n", "{}\n", "[1,2]\n\n", "{\"journal\": 3}\n", "my notes",
                               "my notes\nmore", "{\"journal\":\"indexcache search journal 2\""}) {
    const auto path = folder.write("journal", contents);
    EXPECT_THAT(journal_error([&] { Journal journal(path, setup_with_seed(1)); }),
                HasSubstr("line 1: expected a line of a search journal"));
    EXPECT_EQ(read_file(path), contents);
  }
}

TEST(Journal, IsOneSearchsAtATime) {
  const testing::TemporaryFolder folder;
  Journal journal(folder.path() / "journal", setup_with_seed(1));
  EXPECT_THAT(journal_error([&] { Journal(folder.path() / "journal", setup_with_seed(1)); }),
              HasSubstr("another search is writing it"));
}

}  // namespace
}  // namespace indexcache
