// SPDX-License-Identifier: Apache-2.0
// Checked mode on the GPU: the first wrong value is noted as the CPU notes it, and nothing is
// written. The CPU's sentences and records have tests of their own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "support/device_append.hpp"
#include "support/device_batch.hpp"
#include "support/spoilt_batches.hpp"

namespace quire {

/// For GoogleTest's messages.
static void PrintTo(const CheckRecord& record, std::ostream* out) {
  *out << "{what " << record.what << ", seq " << record.seq << ", position " << record.position
       << ", value " << record.value << ", bound " << record.bound << "}";
}

namespace {

using testing::AppendBatch;
using testing::DeviceAppend;
using testing::DeviceBatch;
using testing::DeviceBytes;
using testing::DeviceWorkspaces;
using testing::KeySource;
using testing::kGpu;
using testing::kSpoiltLimits;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::Spoilt;
using testing::Stream;
using testing::three_requests;

constexpr std::int32_t kHeadDim = 64;

/// A record on the device in which nothing has been found yet.
class DeviceRecord {
 public:
  explicit DeviceRecord(const Stream& stream) : stream_(stream), bytes_(sizeof(CheckRecord)) {
    bytes_.fill(std::byte{0}, stream);
  }
  [[nodiscard]] CheckRecord* get() const { return reinterpret_cast<CheckRecord*>(bytes_.data()); }
  [[nodiscard]] CheckRecord to_host() const {
    CheckRecord record;
    bytes_.download(std::as_writable_bytes(std::span(&record, 1)), 0, stream_);
    return record;
  }
  [[nodiscard]] Status result() const {
    return check_result(kGpu, get(), {.stream = stream_.get(), .check = nullptr});
  }

 private:
  const Stream& stream_;
  DeviceBytes bytes_;
};

auto is(const CheckRecord& expected) {
  return ::testing::AllOf(::testing::Field("what", &CheckRecord::what, expected.what),
                          ::testing::Field("seq", &CheckRecord::seq, expected.seq),
                          ::testing::Field("position", &CheckRecord::position, expected.position),
                          ::testing::Field("value", &CheckRecord::value, expected.value),
                          ::testing::Field("bound", &CheckRecord::bound, expected.bound));
}

/// What the CPU notes of the batch.
CheckRecord record_of_cpu(RandomBatch& host) {
  const Attention attention(Device::cpu(), host.spec, kSpoiltLimits);
  testing::RubbishWorkspace schedule(attention.workspace_sizes().schedule);
  testing::RubbishWorkspace scratch(attention.workspace_sizes().scratch);
  CheckRecord record;
  const CallOptions call{.stream = nullptr, .check = &record};
  Status status = attention.schedule(host.batch, schedule.get(), call);
  if (status.ok()) {
    status = attention.run(host.batch, host.tensors, schedule.get(), scratch.get(), call);
  }
  EXPECT_EQ(status.ok(), record.what == 0) << status.message();
  return record;
}

bool is_all_nan(const testing::ElementBuffer& elements) {
  for (std::int64_t i = 0; i < elements.size(); ++i) {
    if (!std::isnan(elements.get(i))) return false;
  }
  return true;
}

/// Runs a bad batch in checked mode and compares with what the CPU makes of it.
void expect_refused(RandomBatch& host) {
  const CheckRecord expected = record_of_cpu(host);
  ASSERT_NE(expected.what, 0);
  const Attention attention(kGpu, host.spec, kSpoiltLimits);
  const DeviceBatch batch(host);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  const DeviceRecord record(batch.stream);
  const Status status = batch.launch(attention, workspaces, record.get());
  ASSERT_TRUE(status.ok()) << status.message();  // the host saw nothing wrong
  EXPECT_THAT(record.to_host(), is(expected));
  const Status result = record.result();
  EXPECT_EQ(result.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(result.message(), check_result(Device::cpu(), &expected).message());
  batch.mirror.download(batch.stream);
  EXPECT_TRUE(is_all_nan(host.o_elements));
  EXPECT_TRUE(is_all_nan(host.lse_elements));
  EXPECT_TRUE(batch.mirror.guards_are_untouched(batch.stream));
  EXPECT_TRUE(workspaces.guards_are_untouched(batch.stream));
}

class GpuCheckedMode : public ::testing::TestWithParam<Spoilt> {};

TEST_P(GpuCheckedMode, NotesTheWrongValueAndWritesNothing) {
  const Spoilt& spoilt = GetParam();
  RandomBatch host(spoilt.options);
  spoilt.spoil(host);
  expect_refused(host);
}

INSTANTIATE_TEST_SUITE_P(Where, GpuCheckedMode,
                         ::testing::ValuesIn(testing::spoilt_batches(kHeadDim)),
                         [](const auto& test) {
                           std::string name;
                           for (const char c : test.param.what) {
                             name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
                           }
                           return name;
                         });

TEST(GpuCheckedMode, NotesTheFirstOfSeveral) {
  RandomBatch host(three_requests(KeySource::kDense, Mask::kCausal, kHeadDim));
  host.page_table[6] = 901;
  host.page_table[12] = 902;
  expect_refused(host);
}

TEST(GpuCheckedMode, FindsNothingInGoodBatchesAndComputesThem) {
  for (const KeySource source :
       {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen, KeySource::kContiguous}) {
    for (const Mask mask : {Mask::kCausal, Mask::kTree, Mask::kFull}) {
      RandomBatch host(three_requests(source, mask, kHeadDim));
      const Attention attention(kGpu, host.spec, kSpoiltLimits);
      const DeviceBatch batch(host);
      const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
      const DeviceRecord record(batch.stream);
      ASSERT_TRUE(batch.launch(attention, workspaces, record.get()).ok());
      EXPECT_THAT(record.to_host(), is({}));
      EXPECT_TRUE(record.result().ok());
      batch.mirror.download(batch.stream);
      expect_matches(host, oracle_of(host));
    }
  }
}

TEST(GpuCheckedMode, IgnoresPageIdsThatAreNotRead) {
  RandomBatchOptions options = three_requests(KeySource::kDense, Mask::kCausal, kHeadDim);
  options.spec.window_left = 4;  // request 0 sees keys from 34 on: its third page alone
  RandomBatch host(options);
  host.page_table[0] = host.page_table[1] = -7;               // before the window
  host.page_table[6 + 1] = host.page_table[6 + 2] = 1 << 30;  // beyond the keys
  const Attention attention(kGpu, host.spec, kSpoiltLimits);
  const DeviceBatch batch(host);
  const DeviceWorkspaces workspaces(attention.workspace_sizes(), batch.stream);
  const DeviceRecord record(batch.stream);
  ASSERT_TRUE(batch.launch(attention, workspaces, record.get()).ok());
  EXPECT_THAT(record.to_host(), is({}));
  batch.mirror.download(batch.stream);
  expect_matches(host, oracle_of(host));
}

void expect_append_refused(const std::function<void(AppendBatch&)>& spoil) {
  AppendBatch host({});
  spoil(host);
  CheckRecord expected;
  EXPECT_FALSE(append(Device::cpu(), host.c.layout, host.batch, host.tensors,
                      {.stream = nullptr, .check = &expected})
                   .ok());
  const DeviceAppend device(host);
  const DeviceRecord record(device.stream);
  const Status status = device.append(record.get());
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_THAT(record.to_host(), is(expected));
  EXPECT_EQ(record.result().message(), check_result(Device::cpu(), &expected).message());
  device.download();
  host.expect_nothing_written();
}

TEST(GpuCheckedMode, OfAppendNotesABadSlotOrPageAndWritesNothing) {
  expect_append_refused([](AppendBatch& b) {
    b.slots.assign(static_cast<std::size_t>(b.total_q), 0);
    b.slots[20] = 144;
    b.tensors.slot_mapping = TensorView(b.slots.data(), DType::kInt64, {b.total_q});
  });
  expect_append_refused([](AppendBatch& b) { b.table[2 * 3 + 2] = 9; });
  expect_append_refused([](AppendBatch& b) { b.table[2 * 3 + 1] = -1; });
  expect_append_refused([](AppendBatch& b) { b.c.kv_len[2] = 49; });
  expect_append_refused([](AppendBatch& b) { b.c.qo_indptr[4] = 30; });
}

TEST(GpuCheckedMode, OfAppendFindsNothingInAGoodBatchAndWritesIt) {
  AppendBatch host({});
  const DeviceAppend device(host);
  const DeviceRecord record(device.stream);
  ASSERT_TRUE(device.append(record.get()).ok());
  EXPECT_TRUE(record.result().ok());
  device.download();
  host.expect_written();
}

}  // namespace
}  // namespace quire
