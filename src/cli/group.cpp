#include "cli/group.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>

#include "indexcache/base/error.h"

namespace indexcache::cli {
namespace {

constexpr std::array<const char*, 4> kVariables = {"RANK", "WORLD_SIZE", "MASTER_ADDR",
                                                   "MASTER_PORT"};

InputError variable_error(std::string_view variable, std::string_view expected,
                          std::string_view found) {
  return expectation_error(fmt::format("environment variable {}", variable), expected, found);
}

int read_integer(const char* variable, int least, int most, std::string_view expected) {
  const std::string_view text = std::getenv(variable);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    throw variable_error(variable, expected, quote(text));
  }
  return value;
}

}  // namespace

std::optional<GroupPlace> group_from_environment() {
  const char* present = nullptr;
  const char* missing = nullptr;
  for (const auto* variable : kVariables) {
    (std::getenv(variable) != nullptr ? present : missing) = variable;
  }
  if (present == nullptr) return std::nullopt;
  if (missing != nullptr) {
    throw variable_error(missing, fmt::format("a value, since {} is set", present), "none");
  }

  GroupPlace place;
  place.size =
      read_integer("WORLD_SIZE", 1, std::numeric_limits<int>::max(), "an integer of 1 or more");
  place.rank = read_integer("RANK", 0, place.size - 1,
                            fmt::format("an integer in [0, {}), as WORLD_SIZE says", place.size));
  place.address = std::getenv("MASTER_ADDR");
  if (place.address.empty()) {
    throw variable_error("MASTER_ADDR", "a host name or an address", quote(place.address));
  }
  place.port = read_integer("MASTER_PORT", 1, 65535, "a port in [1, 65535]");
  if (std::getenv("LOCAL_RANK") != nullptr) {
    place.local_rank = read_integer("LOCAL_RANK", 0, place.rank, "an integer in [0, RANK]");
  }
  // torchrun's agent, where it has a store of its own, already listens on that port.
  const char* agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  if (agent != nullptr && std::string_view(agent) == "True") place.meeting = Meeting::kAtLauncher;
  if (std::getenv("TORCHELASTIC_RESTART_COUNT") != nullptr) {
    place.attempt = read_integer("TORCHELASTIC_RESTART_COUNT", 0, std::numeric_limits<int>::max(),
                                 "an integer of 0 or more");
  }
  return place;
}

}  // namespace indexcache::cli
