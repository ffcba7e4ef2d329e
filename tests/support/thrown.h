// The message of the error that a call throws.
#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <string>
#include <typeinfo>

namespace indexcache::testing {

// Runs `call`, which must throw exactly an `Exception`; returns its message, or "" after a failure.
template <typename Exception, typename Call>
std::string thrown(const Call& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "threw another error (" << typeid(error).name() << "): " << error.what();
    return "";
  }
  ADD_FAILURE() << "threw nothing";
  return "";
}

}  // namespace indexcache::testing
