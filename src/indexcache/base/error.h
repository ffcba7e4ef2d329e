// Errors of the three kinds the library knows.
//
//   InputError         the caller's mistake: a bad file, option, shape or request. Thrown; the
//                      command prints its one line.
//   DeviceError        the machine failed: out of memory, a CUDA error, a full disk. Thrown.
//   INDEXCACHE_ASSERT  our own bug: aborts with file and line.
//
// The library never prints, never exits and never reads the environment.
#pragma once

#include <fmt/format.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace indexcache {

class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class InputError : public Error {
  using Error::Error;
};

class DeviceError : public Error {
  using Error::Error;
};

// A message in three parts: where, what was expected and what was found.
//   expectation_error("model/config.json: index_topk", "a positive integer", "-3")
//     -> "model/config.json: index_topk: expected a positive integer, found -3"
inline InputError expectation_error(std::string_view where, std::string_view expected,
                                    std::string_view found) {
  return InputError(fmt::format("{}: expected {}, found {}", where, expected, found));
}

// Text of unknown origin for a message: in double quotes, bytes outside printable ASCII as \xNN,
// and no more than its first 80 bytes, so that a message stays one readable line.
std::string quote(std::string_view text);

template <typename... Args>
InputError input_error(fmt::format_string<Args...> format, Args&&... args) {
  return InputError(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
DeviceError device_error(fmt::format_string<Args...> format, Args&&... args) {
  return DeviceError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace indexcache

#define INDEXCACHE_ASSERT(condition)                                                    \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      fmt::print(stderr, "indexcache: internal error: {}:{}: {}\n", __FILE__, __LINE__, \
                 #condition);                                                           \
      std::abort();                                                                     \
    }                                                                                   \
  } while (false)
