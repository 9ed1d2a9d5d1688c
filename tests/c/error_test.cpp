// SPDX-License-Identifier: Apache-2.0
// Misuse of the C ABI gets a code and a sentence, never a crash.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>

#include "c/client.hpp"
#include "quire/error.hpp"
#include "quire/tensor.hpp"

namespace quire::c_test {
namespace {

/// Checks the outcome of a call that fails: its code and its whole sentence.
void expect_failure(quire_status got, quire_status code, const std::string& sentence) {
  EXPECT_EQ(got, code) << quire_status_name(got);
  EXPECT_EQ(std::string(quire_last_error()), sentence);
}

TEST(CErrors, EveryNullGetsItsSentence) {
  Client client;
  client.create();
  quire_attention* made = nullptr;
  const auto invalid = [](quire_status got, const char* sentence) {
    expect_failure(got, QUIRE_INVALID_ARGUMENT, sentence);
  };
  invalid(quire_attention_create(kCpu, nullptr, &client.limits, nullptr, &made),
          "[quire_attention_create] spec: expected a quire_attention_spec, got NULL");
  invalid(quire_attention_create(kCpu, &client.spec, nullptr, nullptr, &made),
          "[quire_attention_create] limits: expected a quire_batch_limits, got NULL");
  invalid(quire_attention_create(kCpu, &client.spec, &client.limits, nullptr, nullptr),
          "[quire_attention_create] attention: expected a place for the handle, got NULL");
  invalid(quire_attention_schedule(nullptr, &client.batch, nullptr, 0, nullptr),
          "[quire_attention_schedule] attention: expected a quire_attention, got NULL");
  invalid(quire_attention_schedule(client.attention, nullptr, nullptr, 0, nullptr),
          "[quire_attention_schedule] batch: expected a quire_batch, got NULL");
  invalid(quire_attention_run(client.attention, &client.batch, nullptr, nullptr, 0, nullptr, 0,
                              nullptr),
          "[quire_attention_run] tensors: expected a quire_attention_tensors, got NULL");
  invalid(quire_attention_get_spec(client.attention, nullptr),
          "[quire_attention_get_spec] spec: expected a quire_attention_spec, got NULL");
  invalid(quire_attention_get_limits(nullptr, &client.limits),
          "[quire_attention_get_limits] attention: expected a quire_attention, got NULL");
  invalid(quire_append(kCpu, QUIRE_LAYOUT_NHD, nullptr, nullptr, nullptr, nullptr),
          "[quire_append] tensors: expected a quire_append_tensors, got NULL");
  invalid(quire_merge_states(kCpu, nullptr, nullptr, nullptr),
          "[quire_merge_states] tensors: expected a quire_merge_tensors, got NULL");
  invalid(quire_check_result(kCpu, nullptr, nullptr),
          "[quire_check_result] record: expected a quire_check_record, got NULL");
  EXPECT_EQ(quire_attention_kernel(nullptr), nullptr);
  EXPECT_STREQ(quire_last_error(),
               "[quire_attention_kernel] attention: expected a quire_attention, got NULL");
}

TEST(CErrors, DestroyingNothingIsNoError) {
  quire_attention_destroy(nullptr);
  quire_executor_destroy(nullptr);
  quire_page_pool_destroy(nullptr);
  quire_page_table_destroy(nullptr);
  quire_copy_plan_destroy(nullptr);
}

TEST(CErrors, AHandleOfAnotherKindIsToldApartAndLeftAlone) {
  Client client;
  client.create();
  auto* as_pool = reinterpret_cast<quire_page_pool*>(client.attention);
  std::int32_t page = 0;
  expect_failure(quire_page_pool_allocate(as_pool, &page, 1), QUIRE_BAD_HANDLE,
                 "[quire_page_pool_allocate] pool: expected a quire_page_pool, got another kind of "
                 "handle");
  quire_page_pool_destroy(as_pool);
  EXPECT_STREQ(quire_last_error(),
               "[destroy] handle: expected a quire_page_pool, got another kind of handle");
  EXPECT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
}

TEST(CErrors, FailedCreationLeavesNoHandle) {
  Client client;
  client.spec.head_dim_qk = 13;
  client.attention = reinterpret_cast<quire_attention*>(&client);
  EXPECT_EQ(quire_attention_create(kCpu, &client.spec, &client.limits, nullptr, &client.attention),
            QUIRE_UNSUPPORTED);
  EXPECT_EQ(client.attention, nullptr);
}

TEST(CErrors, ValuesThatCppTypesCannotHoldGetTheirSentences) {
  Client client;
  quire_attention* made = nullptr;
  const auto create = [&](quire_device device) {
    return quire_attention_create(device, &client.spec, &client.limits, nullptr, &made);
  };
  expect_failure(create({7, 0}), QUIRE_INVALID_ARGUMENT,
                 "[quire_attention_create] device: expected type 0 (CPU) or 1 (CUDA) and index >= "
                 "0, got type 7 and index 0");
  client.spec.sinks = 2;
  expect_failure(create(kCpu), QUIRE_INVALID_ARGUMENT,
                 "[quire_attention_create] spec.sinks: expected 0 or 1, got 2");
  client.spec.sinks = 0;
  client.limits.reserved = 5;
  expect_failure(create(kCpu), QUIRE_INVALID_ARGUMENT,
                 "[quire_attention_create] limits.reserved: expected 0, got 5");
  expect_failure(quire_append(kCpu, 2, nullptr, &client.append, nullptr, nullptr),
                 QUIRE_INVALID_ARGUMENT,
                 "[quire_append] kv_layout: expected 0 (NHD) or 1 (HND), got 2");
}

TEST(CErrors, WhatTheLibraryRefusesKeepsItsSentence) {
  Client client;
  client.create();
  client.batch.kv_len.dtype = QUIRE_INT64;
  expect_failure(client.schedule(), QUIRE_INVALID_ARGUMENT,
                 "[schedule] kv_len: expected int32 [2], got int64 [2]");
  client.batch.kv_len.dtype = QUIRE_INT32;
  client.schedule_bytes -= 1;
  EXPECT_EQ(client.schedule(), QUIRE_WORKSPACE_TOO_SMALL);
  client.schedule_bytes += 1;
  EXPECT_EQ(quire_attention_schedule(client.attention, &client.batch, nullptr,
                                     client.schedule_bytes, nullptr),
            QUIRE_WORKSPACE_TOO_SMALL);
  client.page_table[0] = 77;
  ASSERT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(client.run(), QUIRE_INVALID_ARGUMENT);
  EXPECT_NE(std::strstr(quire_last_error(), "77"), nullptr) << quire_last_error();
}

TEST(CErrors, EachThreadHasItsOwnLastError) {
  quire_check_result(kCpu, nullptr, nullptr);
  const std::string mine = quire_last_error();
  std::string before;
  std::string after;
  std::thread other([&] {
    before = quire_last_error();
    quire_merge_states(kCpu, nullptr, nullptr, nullptr);
    after = quire_last_error();
  });
  other.join();
  EXPECT_EQ(before, "");
  EXPECT_EQ(after, "[quire_merge_states] tensors: expected a quire_merge_tensors, got NULL");
  EXPECT_EQ(quire_last_error(), mine);
}

TEST(CErrors, SuccessLeavesTheLastError) {
  quire_check_result(kCpu, nullptr, nullptr);
  const std::string sentence = quire_last_error();
  const quire_check_record none = {0, 0, 0, 0, 0};
  ASSERT_EQ(quire_check_result(kCpu, &none, nullptr), QUIRE_OK);
  EXPECT_EQ(quire_last_error(), sentence);
}

TEST(CErrors, LongSentencesAreCut) {
  Client client;
  const std::string name(5000, 'k');
  quire_attention_options options = QUIRE_ATTENTION_OPTIONS_INIT;
  options.kernel = name.c_str();
  quire_attention* made = nullptr;
  EXPECT_EQ(quire_attention_create(kCpu, &client.spec, &client.limits, &options, &made),
            QUIRE_UNSUPPORTED);
  EXPECT_EQ(std::strlen(quire_last_error()), 1023U);
}

TEST(CErrors, NamesAreThoseOfCpp) {
  for (std::int32_t code = -1; code <= QUIRE_INTERNAL + 1; ++code) {
    EXPECT_EQ(quire_status_name(code), to_string(static_cast<ErrorCode>(code)));
  }
  for (std::int32_t dtype = -1; dtype <= QUIRE_UINT32 + 1; ++dtype) {
    EXPECT_EQ(quire_dtype_name(dtype), to_string(static_cast<DType>(dtype)));
    EXPECT_EQ(quire_dtype_size(dtype), size_of(static_cast<DType>(dtype)));
  }
  EXPECT_STREQ(quire_version(), QUIRE_VERSION_STRING);
}

}  // namespace
}  // namespace quire::c_test
