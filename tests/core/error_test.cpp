// SPDX-License-Identifier: Apache-2.0
#include "quire/error.hpp"

#include <gtest/gtest.h>

#include <string>

namespace quire {
namespace {

TEST(Status, IsOkByDefaultAndHasNoText) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), ErrorCode::kOk);
  EXPECT_TRUE(status.message().empty());
  EXPECT_NO_THROW(status.throw_if_error());
}

TEST(Status, ThrowsItsOwnCodeAndText) {
  const Status status(ErrorCode::kTooLong, "[x] y: expected less, got more");
  try {
    status.throw_if_error();
    FAIL() << "expected an exception";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kTooLong);
    EXPECT_STREQ(error.what(), "[x] y: expected less, got more");
  }
}

TEST(Status, CopiesShareOneText) {
  const Status status(ErrorCode::kBadHandle, "a text");
  const Status copy = status;
  EXPECT_EQ(copy.message().data(), status.message().data());
}

TEST(Result, HoldsAValueOrTheReasonWhyNot) {
  const Result<int> value(7);
  EXPECT_TRUE(value.ok());
  EXPECT_EQ(value.value(), 7);
  const Result<int> none(Status(ErrorCode::kOutOfPages, "no page left"));
  EXPECT_FALSE(none.ok());
  EXPECT_EQ(none.status().code(), ErrorCode::kOutOfPages);
  EXPECT_THROW((void)none.value(), Error);
}

TEST(ErrorCode, HasANameForEveryValue) {
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    EXPECT_NE(to_string(static_cast<ErrorCode>(code)), "unknown error") << code;
  }
}

}  // namespace
}  // namespace quire
