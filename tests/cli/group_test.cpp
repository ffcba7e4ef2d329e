#include "cli/group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <map>
#include <string>

#include "indexcache/base/error.h"
#include "support/thrown.h"

namespace indexcache::cli {
namespace {

using Variables = std::map<std::string, std::string>;

const Variables kGood = {{"RANK", "1"},
                         {"WORLD_SIZE", "4"},
                         {"MASTER_ADDR", "node-0.example"},
                         {"MASTER_PORT", "29500"}};

std::optional<GroupPlace> read(const Variables& variables) {
  for (const char* name :
       {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
        "TORCHELASTIC_RESTART_COUNT", "LOCAL_RANK"}) {
    ::unsetenv(name);
  }
  for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
  return group_from_environment();
}

std::string refused(const std::string& name, const std::string& value) {
  auto variables = kGood;
  variables[name] = value;
  return testing::thrown<InputError>([&] { read(variables); });
}

TEST(GroupFromEnvironment, IsNoneWhereNothingIsSet) {
  EXPECT_FALSE(read({}).has_value());
  EXPECT_FALSE(read({{"TORCHELASTIC_USE_AGENT_STORE", "True"}}).has_value());
}

TEST(GroupFromEnvironment, ReadsWhatTorchrunSets) {
  auto variables = kGood;
  auto place = read(variables);
  ASSERT_TRUE(place.has_value());
  EXPECT_EQ(place->rank, 1);
  EXPECT_EQ(place->size, 4);
  EXPECT_EQ(place->address, "node-0.example");
  EXPECT_EQ(place->port, 29500);
  EXPECT_EQ(place->meeting, Meeting::kAtFirst);

  variables["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  EXPECT_EQ(read(variables)->meeting, Meeting::kAtFirst);
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  EXPECT_EQ(read(variables)->meeting, Meeting::kAtLauncher);
  EXPECT_EQ(read(variables)->attempt, 0);
  variables["TORCHELASTIC_RESTART_COUNT"] = "2";
  EXPECT_EQ(read(variables)->attempt, 2);
  EXPECT_EQ(read(variables)->local_rank, 0);
  variables["LOCAL_RANK"] = "1";
  EXPECT_EQ(read(variables)->local_rank, 1);
}

TEST(GroupFromEnvironment, NamesWhatIsMissing) {
  for (const auto& [name, value] : kGood) {
    auto variables = kGood;
    variables.erase(name);
    EXPECT_THAT(testing::thrown<InputError>([&] { read(variables); }),
                ::testing::MatchesRegex("environment variable " + name +
                                        ": expected a value, since [A-Z_]+ is set, found none"));
  }
  EXPECT_THAT(testing::thrown<InputError>([] {
                read({{"RANK", "0"}});
              }),
              ::testing::HasSubstr("since RANK is set"));
}

TEST(GroupFromEnvironment, NamesWhatIsWrong) {
  EXPECT_EQ(refused("RANK", "4"),
            "environment variable RANK: expected an integer in [0, 4), as WORLD_SIZE says, "
            "found \"4\"");
  for (const char* text : {"-1", "", "one", "1x", " 1", "1.0", "+1", "99999999999999999999"}) {
    EXPECT_THAT(refused("RANK", text), ::testing::HasSubstr("environment variable RANK: expected"));
    EXPECT_THAT(refused("RANK", text), ::testing::HasSubstr("found \"" + std::string(text) + "\""));
  }
  for (const char* text : {"0", "-4", "", "many", "99999999999999999999"}) {
    EXPECT_EQ(refused("WORLD_SIZE", text),
              "environment variable WORLD_SIZE: expected an integer of 1 or more, found \"" +
                  std::string(text) + "\"");
  }
  for (const char* text : {"0", "65536", "-1", "", "http"}) {
    EXPECT_EQ(refused("MASTER_PORT", text),
              "environment variable MASTER_PORT: expected a port in [1, 65535], found \"" +
                  std::string(text) + "\"");
  }
  EXPECT_EQ(refused("LOCAL_RANK", "2"),
            "environment variable LOCAL_RANK: expected an integer in [0, RANK], found \"2\"");
  EXPECT_EQ(refused("TORCHELASTIC_RESTART_COUNT", "-1"),
            "environment variable TORCHELASTIC_RESTART_COUNT: expected an integer of 0 or more, "
            "found \"-1\"");
  EXPECT_EQ(refused("MASTER_ADDR", ""),
            "environment variable MASTER_ADDR: expected a host name or an address, found \"\"");
  EXPECT_EQ(refused("RANK", "1\n2"),
            "environment variable RANK: expected an integer in [0, 4), as WORLD_SIZE says, "
            "found \"1\\x0a2\"");
}

}  // namespace
}  // namespace indexcache::cli
