// EXPECT_LOAD_ERROR(statement, kind, part...): it throws tokenmill::Error of that kind, in one line that holds all
// parts.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <string>

#include "tokenmill/error.h"

namespace tokenmill::testing {

inline ::testing::AssertionResult fails_with(const std::function<void()>& call, ErrorKind kind,
                                             std::initializer_list<std::string> parts) {
  try {
    call();
  } catch (const Error& e) {
    const std::string message = e.what();
    if (e.kind() != kind) return ::testing::AssertionFailure() << "wrong kind of error: " << message;
    if (message.find('\n') != std::string::npos) return ::testing::AssertionFailure() << "several lines: " << message;
    for (const std::string& part : parts) {
      if (message.find(part) == std::string::npos) {
        return ::testing::AssertionFailure() << "'" << part << "' is not in: " << message;
      }
    }
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "no error";
}

}  // namespace tokenmill::testing

#define EXPECT_LOAD_ERROR(statement, kind, ...) \
  EXPECT_TRUE(::tokenmill::testing::fails_with([&] { statement; }, kind, {__VA_ARGS__}))
