// SPDX-License-Identifier: Apache-2.0
// The sentence for every wrong value in a batch, and the record of checked mode.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "support/spoilt_batches.hpp"

namespace quire {
namespace {

using testing::KeySource;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::three_requests;

/// What came of a spoilt call, and what was noted.
struct Outcome {
  ErrorCode code = ErrorCode::kOk;
  std::string text;
  CheckRecord record;
};

Outcome outcome_of(RandomBatch& batch) {
  const Attention attention(Device::cpu(), batch.spec, testing::kSpoiltLimits);
  testing::RubbishWorkspace schedule(attention.workspace_sizes().schedule);
  testing::RubbishWorkspace scratch(attention.workspace_sizes().scratch);
  Outcome outcome;
  const CallOptions call{.check = &outcome.record};
  Status status = attention.schedule(batch.batch, schedule.get(), call);
  if (status.ok()) {
    status = attention.run(batch.batch, batch.tensors, schedule.get(), scratch.get(), call);
  }
  outcome.code = status.code();
  outcome.text = std::string(status.message());
  return outcome;
}

Outcome outcome_after(const RandomBatchOptions& options,
                      const std::function<void(RandomBatch&)>& spoil) {
  RandomBatch batch(options);
  spoil(batch);
  return outcome_of(batch);
}

/// Of a value that is wrong.
std::string text_after(const RandomBatchOptions& options,
                       const std::function<void(RandomBatch&)>& spoil) {
  const Outcome outcome = outcome_after(options, spoil);
  EXPECT_EQ(outcome.code, outcome.text.empty() ? ErrorCode::kOk : ErrorCode::kInvalidArgument);
  return outcome.text;
}

/// Of a value that is good, but beyond the limits of the attention; the record says the same.
std::string too_long_after(const RandomBatchOptions& options,
                           const std::function<void(RandomBatch&)>& spoil) {
  const Outcome outcome = outcome_after(options, spoil);
  EXPECT_EQ(outcome.code, ErrorCode::kTooLong);
  EXPECT_EQ(check_result(Device::cpu(), &outcome.record).code(), ErrorCode::kTooLong);
  return outcome.text;
}

TEST(BatchValues, ThatAreGoodLeaveNoSentenceAndAnEmptyRecord) {
  for (const KeySource source :
       {KeySource::kDense, KeySource::kCsr, KeySource::kCsrWithKvLen, KeySource::kContiguous}) {
    const Outcome outcome = outcome_after(three_requests(source), [](RandomBatch&) {});
    EXPECT_EQ(outcome.text, "");
    EXPECT_EQ(outcome.record.what, 0);
  }
}

TEST(BatchValues, OfQoIndptrAreInOrderAndWithinTheLimits) {
  const RandomBatchOptions options = three_requests(KeySource::kDense);
  EXPECT_EQ(text_after(options, [](RandomBatch& b) { b.qo_indptr[0] = 1; }),
            "[schedule] qo_indptr[0]: expected 0…0, got 1");
  EXPECT_EQ(text_after(options, [](RandomBatch& b) { b.qo_indptr[1] = -4; }),
            "[schedule] qo_indptr[1]: expected 0…8, got -4");
  EXPECT_EQ(text_after(options, [](RandomBatch& b) { b.qo_indptr[2] = 1; }),
            "[schedule] qo_indptr[2]: expected 2…8, got 1");
  EXPECT_EQ(too_long_after(options, [](RandomBatch& b) { b.qo_indptr[3] = 9; }),
            "[schedule] qo_indptr[3]: expected at most 8 rows of q as BatchLimits says, got 9");
}

TEST(BatchValues, OfQoIndptrFitTheRowsOfQ) {
  EXPECT_EQ(text_after(three_requests(KeySource::kDense),
                       [](RandomBatch& b) {
                         b.tensors.q.shape[0] = 7;
                         b.tensors.o.shape[0] = 7;
                         b.tensors.lse.shape[0] = 7;
                       }),
            "[attention] qo_indptr[3]: expected at most 7 as q has rows, got 8");
}

TEST(BatchValues, OfKvLenAreWithinTheLimitsAndTheTable) {
  const RandomBatchOptions dense = three_requests(KeySource::kDense);
  EXPECT_EQ(too_long_after(dense, [](RandomBatch& b) { b.kv_len[1] = 101; }),
            "[schedule] kv_len[1]: expected at most 100 keys of a request as BatchLimits says, got "
            "101");
  EXPECT_EQ(text_after(dense, [](RandomBatch& b) { b.kv_len[2] = -1; }),
            "[schedule] kv_len[2]: expected 0…100, got -1");
  EXPECT_EQ(text_after(dense, [](RandomBatch& b) { b.kv_len[0] = 49; }),
            "[schedule] kv_len[0]: expected 0…48 (page_table has 3 pages of 16 tokens for each "
            "request), got 49");
  EXPECT_EQ(text_after(three_requests(KeySource::kCsrWithKvLen),
                       [](RandomBatch& b) { b.kv_len[1] = 17; }),
            "[schedule] kv_len[1]: expected 0…16 (kv_page_indptr gives it 1 pages of 16 tokens), "
            "got 17");
}

TEST(BatchValues, OfCsrTablesAreInOrderAndWithinTheIndices) {
  const RandomBatchOptions csr = three_requests(KeySource::kCsr);
  EXPECT_EQ(text_after(csr, [](RandomBatch& b) { b.kv_page_indptr[0] = -1; }),
            "[schedule] kv_page_indptr[0]: expected 0…5, got -1");
  EXPECT_EQ(text_after(csr, [](RandomBatch& b) { b.kv_page_indptr[2] = 2; }),
            "[schedule] kv_page_indptr[2]: expected 3…5, got 2");
  EXPECT_EQ(text_after(csr, [](RandomBatch& b) { b.kv_page_indptr[3] = 6; }),
            "[schedule] kv_page_indptr[3]: expected 4…5, got 6");
  EXPECT_EQ(text_after(csr, [](RandomBatch& b) { b.kv_last_page_len[1] = 0; }),
            "[schedule] kv_last_page_len[1]: expected 1…16, got 0");
  EXPECT_EQ(text_after(csr, [](RandomBatch& b) { b.kv_last_page_len[2] = 17; }),
            "[schedule] kv_last_page_len[2]: expected 1…16, got 17");
}

TEST(BatchValues, OfLengthsThatFollowFromOffsetsAreWithinTheLimits) {
  RandomBatchOptions options = three_requests(KeySource::kCsr);
  options.requests[1] = {1, 101};
  EXPECT_EQ(too_long_after(options, [](RandomBatch&) {}),
            "[schedule] kv_page_indptr[2]: expected at most 100 keys of a request as BatchLimits "
            "says, got 101");
  options.source = KeySource::kContiguous;
  EXPECT_EQ(too_long_after(options, [](RandomBatch&) {}),
            "[schedule] kv_indptr[2]: expected at most 100 keys of a request as BatchLimits says, "
            "got 101");
}

TEST(BatchValues, OfKvIndptrAreInOrderAndWithinTheRows) {
  const RandomBatchOptions options = three_requests(KeySource::kContiguous);
  EXPECT_EQ(text_after(options, [](RandomBatch& b) { b.kv_indptr[0] = -3; }),
            "[schedule] kv_indptr[0]: expected 0…2147483647, got -3");
  EXPECT_EQ(text_after(options, [](RandomBatch& b) { b.kv_indptr[2] = 42; }),
            "[schedule] kv_indptr[2]: expected 43…2147483647, got 42");
  EXPECT_EQ(text_after(options, [](RandomBatch& b) { b.kv_indptr[3] += 6; }),
            "[attention] kv_indptr[3]: expected at most 69 as k has rows, got 70");
  EXPECT_EQ(text_after(options,
                       [](RandomBatch& b) {
                         b.kv_len = {40, 17, 5};
                         b.batch.kv_len = TensorView(b.kv_len.data(), DType::kInt32, {3});
                       }),
            "[schedule] kv_len[1]: expected 0…16 (kv_indptr gives it 16 rows), got 17");
}

TEST(BatchValues, OfPageIdsAreCheckedBeforeTheyAreFollowed) {
  const RandomBatchOptions dense = three_requests(KeySource::kDense);
  EXPECT_EQ(text_after(dense, [](RandomBatch& b) { b.page_table[2] = -1; }),
            "[attention] page_table[0][2]: expected a page id in [0, 8), got -1");
  EXPECT_EQ(text_after(dense, [](RandomBatch& b) { b.page_table[2 * 6] = 8; }),
            "[attention] page_table[2][0]: expected a page id in [0, 8), got 8");
  EXPECT_EQ(text_after(three_requests(KeySource::kCsr),
                       [](RandomBatch& b) { b.kv_page_indices[3] = 901; }),
            "[attention] kv_page_indices[3]: expected a page id in [0, 8), got 901");
}

TEST(BatchValues, OfPageIdsThatAreNotReadMayBeAnything) {
  RandomBatchOptions options = three_requests(KeySource::kDense);
  options.spec.window_left = 4;  // request 0 sees keys from 34 on: its third page alone
  EXPECT_EQ(text_after(options,
                       [](RandomBatch& b) {
                         b.page_table[0] = b.page_table[1] = -7;               // before the window
                         b.page_table[6 + 1] = b.page_table[6 + 2] = 1 << 30;  // beyond the keys
                       }),
            "");
}

TEST(BatchValues, OfMasksAreWideEnough) {
  EXPECT_EQ(text_after(three_requests(KeySource::kDense, Mask::kTree),
                       [](RandomBatch& b) { b.batch.tree_mask.shape[0] = 7; }),
            "[schedule] tree_mask: expected uint32 [≥8, ≥1] for the 5 new keys of request 2, got "
            "uint32 [7, 2]");
  EXPECT_EQ(text_after(three_requests(KeySource::kDense, Mask::kTree),
                       [](RandomBatch& b) { b.batch.tree_mask.shape[1] = 0; }),
            "[schedule] tree_mask: expected uint32 [≥2, ≥1] for the 2 new keys of request 0, got "
            "uint32 [8, 0]");
  const RandomBatchOptions full = three_requests(KeySource::kDense, Mask::kFull);
  EXPECT_EQ(text_after(full, [](RandomBatch& b) { b.full_mask_indptr[1] = 9; }),
            "[schedule] full_mask_indptr[1]: expected 10…16 (request 0 has 2 × 40 bits), got 9");
  EXPECT_EQ(text_after(full, [](RandomBatch& b) { b.full_mask_indptr[0] = -8; }),
            "[schedule] full_mask_indptr[0]: expected 0…16, got -8");
  EXPECT_EQ(text_after(full, [](RandomBatch& b) { b.full_mask_indptr[3] = 17; }),
            "[schedule] full_mask_indptr[3]: expected 16…16 (request 2 has 5 × 5 bits), got 17");
}

TEST(BatchValues, OfGroupsAreATreeOfPagesThatTheTablesHave) {
  const auto text = [](const std::function<void(RandomBatch&)>& spoil) {
    const RandomBatchOptions options = testing::three_that_share(KeySource::kDense);
    const Outcome outcome = outcome_after(options, [&](RandomBatch& b) {
      testing::name_three(b);
      spoil(b);
    });
    const std::string begin = "[schedule] ";
    if (outcome.text.empty()) return outcome.text;
    EXPECT_EQ(outcome.text.substr(0, begin.size()), begin);
    const std::string sentence = outcome.text.substr(begin.size());
    EXPECT_EQ(check_result(Device::cpu(), &outcome.record).message(), "[check] " + sentence);
    return sentence;
  };
  EXPECT_EQ(text([](RandomBatch&) {}), "");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_leaders[2] = 3; }),
            "prefix_leaders[0][2]: expected -1 or a request in [0, 3), got 3");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_leaders[7] = -2; }),
            "prefix_leaders[2][1]: expected -1, as at the level before, got -2");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_leaders[7] = 1; }),
            "prefix_leaders[2][1]: expected -1, as at the level before, got 1");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_leaders[1] = -1; }),
            "prefix_leaders[0]: expected the same for request 0 and the one that leads it, on this "
            "level or a later one, got 1 "
            "and -1");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_leaders[0] = 0; }),
            "prefix_leaders[0]: expected the same for request 2 and the one that leads it, on this "
            "level or a later one, got 1 "
            "and 0");
  const std::string rule =
      " (more than at the level before, pages that the tables have, as many as for the leader), "
      "got ";
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_pages[1] = 0; }),
            "prefix_pages[0][0]: expected at most 0" + rule + "1");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_pages[3] = 1; }),
            "prefix_pages[1][0]: expected at least 2" + rule + "1");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_pages[3] = 1 << 30; }),
            "prefix_pages[1][0]: expected at most 4" + rule + "1073741824");
  EXPECT_EQ(text([](RandomBatch& b) { b.prefix_pages[5] = 2; }),
            "prefix_pages[1][2]: expected at least 3" + rule + "2");
  EXPECT_EQ(text([](RandomBatch& b) {
              b.page_table[0] = 5;
              b.page_table[7] = 6;
            }),
            "page 0 of request 0: expected 6 as its prefix_leaders have there, got 5");
}

TEST(CheckedMode, NotesTheRequestThatALengthOrAnOffsetBelongsTo) {
  const auto seq_after = [](KeySource source, const std::function<void(RandomBatch&)>& spoil) {
    return outcome_after(three_requests(source), spoil).record.seq;
  };
  EXPECT_EQ(seq_after(KeySource::kDense, [](RandomBatch& b) { b.kv_len[1] = -1; }), 1);
  EXPECT_EQ(seq_after(KeySource::kDense, [](RandomBatch& b) { b.kv_len[1] = 101; }), 1);
  EXPECT_EQ(seq_after(KeySource::kDense, [](RandomBatch& b) { b.qo_indptr[2] = 9; }), 1);
  EXPECT_EQ(seq_after(KeySource::kCsr, [](RandomBatch& b) { b.kv_page_indptr[2] = 2; }), 1);
  EXPECT_EQ(seq_after(KeySource::kCsr, [](RandomBatch& b) { b.kv_last_page_len[1] = 0; }), 1);
  EXPECT_EQ(seq_after(KeySource::kContiguous, [](RandomBatch& b) { b.kv_indptr[2] += 100; }), 1);
}

TEST(CheckedMode, NotesTheFirstOffender) {
  const Outcome outcome = outcome_after(three_requests(KeySource::kDense), [](RandomBatch& b) {
    b.page_table[6] = 901;
    b.page_table[12] = 902;
  });
  EXPECT_EQ(outcome.record.what, static_cast<std::int32_t>(CheckedItem::kPageId));
  EXPECT_EQ(outcome.record.seq, 1);
  EXPECT_EQ(outcome.record.position, 0);
  EXPECT_EQ(outcome.record.value, 901);
  EXPECT_EQ(outcome.record.bound, 8);
  EXPECT_EQ(check_result(Device::cpu(), &outcome.record).code(), ErrorCode::kInvalidArgument);
}

TEST(CheckedMode, KeepsTheFirstOffenceUntilTheCallerClearsIt) {
  RandomBatch batch(three_requests(KeySource::kDense));
  const Attention attention(Device::cpu(), batch.spec, batch.limits());
  testing::RubbishWorkspace schedule(attention.workspace_sizes().schedule);
  CheckRecord record;
  const CallOptions call{.check = &record};
  batch.kv_len[1] = -5;
  EXPECT_FALSE(attention.schedule(batch.batch, schedule.get(), call).ok());
  batch.kv_len[1] = -6;
  EXPECT_FALSE(attention.schedule(batch.batch, schedule.get(), call).ok());
  EXPECT_EQ(record.value, -5);
  batch.kv_len[1] = 16;
  EXPECT_TRUE(attention.schedule(batch.batch, schedule.get(), call).ok());
  EXPECT_EQ(record.value, -5);
  EXPECT_FALSE(check_result(Device::cpu(), &record).ok());
  record = {};
  batch.kv_len[1] = -6;
  EXPECT_FALSE(attention.schedule(batch.batch, schedule.get(), call).ok());
  EXPECT_EQ(record.value, -6);
}

TEST(ScheduleWorkspace, OfAnotherBatchIsRefused) {
  RandomBatch batch(three_requests(KeySource::kDense));
  const Attention attention(Device::cpu(), batch.spec, batch.limits());
  testing::RubbishWorkspace schedule(attention.workspace_sizes().schedule);
  testing::RubbishWorkspace scratch(attention.workspace_sizes().scratch);
  const Status status = attention.run(batch.batch, batch.tensors, schedule.get(), scratch.get());
  EXPECT_EQ(status.message(),
            "[attention] schedule workspace: expected what schedule() leaves for a batch of 3 "
            "requests, got something else");
}

}  // namespace
}  // namespace quire
