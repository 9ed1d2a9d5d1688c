// SPDX-License-Identifier: Apache-2.0
// Attention handles, one-shot, append, merge and the record of checked mode through the C ABI.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "c/client.hpp"

namespace quire::c_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// With q = 0 every score is 0, so that o is the mean of the visible values.
void fill_values(Client& client) {
  for (std::size_t i = 0; i < client.v.size(); ++i) client.v[i] = static_cast<float>(i / 8);
}

void expect_means(const Client& client) {
  // Request 0 sees the tokens in slots 8…11 and 0; request 1 sees slots 12, 12…13, 12…14.
  const std::array<float, 4> means{(8 + 9 + 10 + 11 + 0) / 5.0F, 12.0F, 12.5F, 13.0F};
  const std::array<float, 4> keys{5, 1, 2, 3};
  for (std::size_t row = 0; row < means.size(); ++row) {
    for (std::size_t head = 0; head < 2; ++head) {
      EXPECT_NEAR(client.o[(row * 2 + head) * 8], means[row], 1e-5) << row;
      EXPECT_NEAR(client.lse[row * 2 + head], std::log(keys[row]), 1e-5) << row;
    }
  }
}

TEST(CAttention, RunsABatchOfADecodeAndAPrefill) {
  Client client;
  fill_values(client);
  client.create();
  ASSERT_EQ(client.schedule(), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(client.run(), QUIRE_OK) << quire_last_error();
  expect_means(client);
}

TEST(CAttention, OneCallDoesItAll) {
  Client client;
  fill_values(client);
  ASSERT_EQ(
      quire_attention_once(kCpu, &client.spec, &client.batch, &client.tensors, nullptr, nullptr),
      QUIRE_OK)
      << quire_last_error();
  expect_means(client);
}

TEST(CAttention, GivesItsSpecWithTheDefaultsFilledIn) {
  Client client;
  client.create();
  quire_attention_spec spec = QUIRE_ATTENTION_SPEC_INIT;
  ASSERT_EQ(quire_attention_get_spec(client.attention, &spec), QUIRE_OK);
  EXPECT_EQ(spec.head_dim_vo, 8);
  EXPECT_EQ(spec.o_dtype, QUIRE_FLOAT32);
  EXPECT_FLOAT_EQ(spec.sm_scale, 1.0F / std::sqrt(8.0F));
  quire_batch_limits limits = QUIRE_BATCH_LIMITS_INIT;
  ASSERT_EQ(quire_attention_get_limits(client.attention, &limits), QUIRE_OK);
  EXPECT_EQ(limits.max_num_seqs, Client::kSeqs);
}

TEST(CAttention, WorkspaceSizesAreKnownWithoutAnAttention) {
  Client client;
  client.create();
  std::size_t schedule = 0;
  std::size_t scratch = 0;
  ASSERT_EQ(quire_workspace_sizes(kCpu, &client.spec, &client.limits, nullptr, &schedule, &scratch),
            QUIRE_OK);
  EXPECT_EQ(schedule, client.schedule_bytes);
  EXPECT_EQ(scratch, client.scratch_bytes);
  EXPECT_EQ(quire_attention_workspace_sizes(client.attention, nullptr, nullptr), QUIRE_OK);
}

TEST(CAttention, SupportsNamesTheKernelThatCreateTakes) {
  Client client;
  client.create();
  const char* name = nullptr;
  ASSERT_EQ(quire_supports(kCpu, &client.spec, &name), QUIRE_OK);
  EXPECT_STREQ(name, quire_attention_kernel(client.attention));
  client.spec.head_dim_qk = 13;
  EXPECT_EQ(quire_supports(kCpu, &client.spec, nullptr), QUIRE_UNSUPPORTED);
  EXPECT_NE(std::strstr(quire_last_error(), "head_dim_qk"), nullptr) << quire_last_error();
}

TEST(CAttention, AppendThroughSlotsWritesThoseRowsAndSkipsNegativeOnes) {
  Client client;
  client.new_k.fill(1.0F);
  client.new_v.fill(2.0F);
  const std::array<std::int64_t, Client::kTotalQ> slots{15, -1, 0, 7};
  client.append.slot_mapping = packed(slots.data(), QUIRE_INT64, {Client::kTotalQ});
  ASSERT_EQ(quire_append(kCpu, QUIRE_LAYOUT_NHD, nullptr, &client.append, nullptr, nullptr),
            QUIRE_OK)
      << quire_last_error();
  for (std::size_t slot = 0; slot < 16; ++slot) {
    const bool written = slot == 15 || slot == 0 || slot == 7;
    EXPECT_EQ(client.k[slot * 8], written ? 1.0F : 0.0F) << slot;
    EXPECT_EQ(client.v[slot * 8 + 7], written ? 2.0F : 0.0F) << slot;
  }
}

TEST(CAttention, AppendWithoutSlotsDerivesThemFromTheBatch) {
  Client client;
  client.new_k.fill(1.0F);
  ASSERT_EQ(quire_append(kCpu, QUIRE_LAYOUT_NHD, &client.batch, &client.append, nullptr, nullptr),
            QUIRE_OK)
      << quire_last_error();
  for (std::size_t slot = 0; slot < 16; ++slot) {
    // Position 4 of request 0 is slot 0 of its second page, 0; request 1 fills its page, 3.
    const bool written = slot == 0 || slot == 12 || slot == 13 || slot == 14;
    EXPECT_EQ(client.k[slot * 8], written ? 1.0F : 0.0F) << slot;
  }
}

TEST(CAttention, MergeOfTwoEqualPartsAddsTheLogarithmOfTwo) {
  Client client;
  client.o_parts.fill(3.0F);
  client.lse_parts.fill(1.0F);
  client.lse_parts[0] = -kInfinity;  // row 0, head 0 of part 0
  ASSERT_EQ(quire_merge_states(kCpu, &client.merge, nullptr, nullptr), QUIRE_OK)
      << quire_last_error();
  EXPECT_FLOAT_EQ(client.o[0], 3.0F);
  EXPECT_FLOAT_EQ(client.lse[0], 1.0F);
  EXPECT_FLOAT_EQ(client.o[8], 3.0F);
  EXPECT_FLOAT_EQ(client.lse[1], 1.0F + std::log(2.0F));
}

TEST(CAttention, ACheckRecordBecomesItsSentence) {
  quire_check_record record = {0, 0, 0, 0, 0};
  EXPECT_EQ(quire_check_result(kCpu, &record, nullptr), QUIRE_OK);
  record = {3, 2, 5, 99, 64};
  EXPECT_EQ(quire_check_result(kCpu, &record, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(),
               "[check] page id of request 2, position 5: expected a value in [0, 64), got 99");
  record = {10, 2, 2, 101, 100};
  EXPECT_EQ(quire_check_result(kCpu, &record, nullptr), QUIRE_TOO_LONG);
  EXPECT_STREQ(quire_last_error(),
               "[check] keys of request 2, position 2: expected a value of at most 100, got 101");
}

TEST(CAttention, PackedTensorsAreRowMajorAndRefuseImpossibleRanks) {
  const std::array<float, 24> data{};
  const quire_tensor tensor = packed(data.data(), QUIRE_FLOAT32, {2, 3, 4});
  EXPECT_EQ(tensor.rank, 3);
  EXPECT_EQ(tensor.strides[0], 12);
  EXPECT_EQ(tensor.strides[1], 4);
  EXPECT_EQ(tensor.strides[2], 1);
  const std::int64_t shape[5] = {1, 1, 1, 1, 1};
  EXPECT_EQ(quire_tensor_packed(data.data(), QUIRE_FLOAT32, kCpu, 5, shape).dtype,
            QUIRE_DTYPE_NONE);
  EXPECT_EQ(quire_tensor_packed(data.data(), QUIRE_FLOAT32, kCpu, -1, shape).dtype,
            QUIRE_DTYPE_NONE);
  EXPECT_EQ(quire_tensor_packed(data.data(), QUIRE_FLOAT32, kCpu, 1, nullptr).dtype,
            QUIRE_DTYPE_NONE);
}

}  // namespace
}  // namespace quire::c_test
