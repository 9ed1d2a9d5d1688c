// SPDX-License-Identifier: Apache-2.0
#include "quire/batch_builder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

namespace quire {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

/// A block of bytes that holds a pattern until someone writes to it.
class Block {
 public:
  static constexpr std::byte kUntouched{0xA5};

  explicit Block(std::size_t size) : words_(size / sizeof(Word) + 1), size_(size) {
    std::ranges::fill(bytes(), kUntouched);
  }
  std::span<std::byte> bytes() {
    return std::as_writable_bytes(std::span<Word>(words_)).first(size_);
  }
  bool untouched() {
    return std::ranges::all_of(bytes(), [](std::byte byte) { return byte == kUntouched; });
  }

 private:
  struct alignas(kStagingAlignment) Word {
    std::array<std::byte, kStagingAlignment> bytes;
  };
  std::vector<Word> words_;
  std::size_t size_;
};

/// Sixteen pages of four tokens.
class BatchBuilders : public testing::Test {
 protected:
  SeqId make(std::int32_t tokens) {
    const SeqId seq = table_.create().value();
    EXPECT_TRUE(table_.append(seq, tokens, copies_).ok());
    return seq;
  }
  void expect_refused(std::span<const BatchEntry> entries, ErrorCode code, std::string_view text) {
    const Result<StagedBatch> batch = builder_.build(entries, block_.bytes());
    EXPECT_EQ(batch.status().code(), code);
    EXPECT_EQ(batch.status().message(), text);
    EXPECT_TRUE(block_.untouched());
  }
  void expect_refused(const BatchShape& shape, ErrorCode code, std::string_view text) {
    const std::array<BatchEntry, 1> entries = {{{make(6), 6}}};
    const Result<StagedBatch> batch = builder_.build(entries, shape, block_.bytes());
    EXPECT_EQ(batch.status().code(), code);
    EXPECT_EQ(batch.status().message(), text);
    EXPECT_TRUE(block_.untouched());
  }

  PagePool pool_{{.num_pages = 16, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 8, .max_tokens_per_seq = 64}};
  BatchBuilder builder_{table_};
  std::vector<CopyOp> copies_;
  Block block_{4096};
};

TEST(BatchBuilder, SlotsOfHugeCachesAre64Bit) {
  constexpr std::int32_t kHuge = 1 << 30;
  PagePool pool({.num_pages = 3, .page_size = kHuge});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = kHuge + 1});
  std::vector<CopyOp> copies;
  const SeqId first = *table.create();
  const SeqId second = *table.create();
  ASSERT_TRUE(table.append(first, kHuge + 1, copies).ok());
  ASSERT_TRUE(table.append(second, 2, copies).ok());
  BatchBuilder builder(table);
  const std::vector<BatchEntry> entries = {{second, 2}};
  const BatchShape shape{1, 2, 1, 1};
  std::vector<std::byte> staging(BatchBuilder::staging_size(shape));
  const Result<StagedBatch> batch = builder.build(entries, shape, staging);
  ASSERT_TRUE(batch.ok()) << batch.status().message();
  EXPECT_EQ(batch->slot_mapping[0], std::int64_t{2} * kHuge);
  EXPECT_EQ(batch->slot_mapping[1], std::int64_t{2} * kHuge + 1);
}

TEST_F(BatchBuilders, WritesBothTablesSlotsAndPositionsOfAMixedBatch) {
  const SeqId prefill = make(6);  // pages 0, 1
  const SeqId decode = make(9);   // pages 2, 3, 4
  const SeqId chunk = make(4);    // page 5
  const std::array<BatchEntry, 3> entries = {{{prefill, 6}, {decode, 1}, {chunk, 2}}};
  const StagedBatch batch = builder_.build(entries, block_.bytes()).value();

  EXPECT_EQ(batch.shape, (BatchShape{3, 9, 3, 6}));
  EXPECT_EQ(batch.num_seqs, 3);
  EXPECT_EQ(batch.num_tokens, 9);
  EXPECT_EQ(batch.max_q_len, 6);
  EXPECT_EQ(batch.max_kv_len, 9);
  EXPECT_THAT(batch.qo_indptr, ElementsAre(0, 6, 7, 9));
  EXPECT_THAT(batch.kv_len, ElementsAre(6, 9, 4));
  EXPECT_THAT(batch.kv_page_indptr, ElementsAre(0, 2, 5, 6));
  EXPECT_THAT(batch.kv_page_indices, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(batch.kv_last_page_len, ElementsAre(2, 1, 4));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4, 5, 8, 2, 3));
  EXPECT_THAT(batch.slot_mapping, ElementsAre(0, 1, 2, 3, 4, 5, 16, 22, 23));
  EXPECT_THAT(batch.page_table, ElementsAre(0, 1, -1, 2, 3, 4, 5, -1, -1));
}

TEST_F(BatchBuilders, PadsToAShapeWithEmptyRequestsAndSkippedSlots) {
  const std::array<BatchEntry, 1> entries = {{{make(5), 2}}};
  const StagedBatch batch = builder_.build(entries, {3, 4, 3, 5}, block_.bytes()).value();
  EXPECT_EQ(batch.num_seqs, 1);
  EXPECT_EQ(batch.num_tokens, 2);
  EXPECT_THAT(batch.qo_indptr, ElementsAre(0, 2, 2, 2));
  EXPECT_THAT(batch.kv_len, ElementsAre(5, 0, 0));
  EXPECT_THAT(batch.kv_page_indptr, ElementsAre(0, 2, 2, 2));
  EXPECT_THAT(batch.kv_page_indices, ElementsAre(0, 1, -1, -1, -1));
  EXPECT_THAT(batch.kv_last_page_len, ElementsAre(1, 0, 0));
  EXPECT_THAT(batch.positions, ElementsAre(3, 4, 0, 0));
  EXPECT_THAT(batch.slot_mapping, ElementsAre(3, 4, -1, -1));
  EXPECT_THAT(batch.page_table, ElementsAre(0, 1, -1, -1, -1, -1, -1, -1, -1));
}

TEST_F(BatchBuilders, AFixedShapeHasItsArraysAtTheSamePlacesEveryStep) {
  const BatchShape shape{4, 16, 5, 12};
  const std::array<BatchEntry, 2> first = {{{make(5), 2}, {make(9), 9}}};
  const std::array<BatchEntry, 1> second = {{{make(1), 0}}};
  const StagedBatch a = builder_.build(first, shape, block_.bytes()).value();
  const StagedBatch b = builder_.build(second, shape, block_.bytes()).value();
  EXPECT_EQ(a.slot_mapping.data(), b.slot_mapping.data());
  EXPECT_EQ(a.kv_page_indices.data(), b.kv_page_indices.data());
  EXPECT_EQ(a.page_table.data(), b.page_table.data());
  EXPECT_EQ(a.bytes.size(), b.bytes.size());
}

TEST_F(BatchBuilders, LeavesOutTheTableThatIsNotWanted) {
  const std::array<BatchEntry, 1> entries = {{{make(5), 2}}};
  const StagedBatch dense =
      builder_.build(entries, {1, 2, 2, BatchShape::kOmitted}, block_.bytes()).value();
  EXPECT_THAT(dense.kv_page_indptr, IsEmpty());
  EXPECT_THAT(dense.kv_last_page_len, IsEmpty());
  EXPECT_THAT(dense.page_table, ElementsAre(0, 1));
  EXPECT_FALSE(dense.csr().kv_page_indptr.given());
  EXPECT_TRUE(dense.dense().page_table.given());

  const StagedBatch csr =
      builder_.build(entries, {1, 2, BatchShape::kOmitted, 2}, block_.bytes()).value();
  EXPECT_THAT(csr.page_table, IsEmpty());
  EXPECT_THAT(csr.kv_page_indices, ElementsAre(0, 1));
  EXPECT_FALSE(csr.dense().page_table.given());
  EXPECT_TRUE(csr.csr().kv_page_indptr.given());
}

TEST_F(BatchBuilders, TakesEmptyBatchesEmptyRequestsAndRequestsWithoutNewTokens) {
  const StagedBatch nothing = builder_.build({}, block_.bytes()).value();
  EXPECT_THAT(nothing.qo_indptr, ElementsAre(0));
  EXPECT_THAT(nothing.kv_page_indptr, ElementsAre(0));
  EXPECT_TRUE(nothing.dense().page_table.given());

  const std::array<BatchEntry, 2> entries = {{{make(0), 0}, {make(4), 0}}};
  const StagedBatch batch = builder_.build(entries, block_.bytes()).value();
  EXPECT_THAT(batch.qo_indptr, ElementsAre(0, 0, 0));
  EXPECT_THAT(batch.kv_last_page_len, ElementsAre(0, 4));
  EXPECT_THAT(batch.slot_mapping, IsEmpty());
}

TEST_F(BatchBuilders, ViewsHaveTheShapesThatAttentionWants) {
  const std::array<BatchEntry, 2> entries = {{{make(5), 2}, {make(9), 9}}};
  const StagedBatch staged = builder_.build(entries, block_.bytes()).value();
  const Batch dense = staged.dense();
  EXPECT_EQ(dense.qo_indptr.data, staged.qo_indptr.data());
  EXPECT_EQ(dense.qo_indptr.size(0), 3);
  EXPECT_EQ(dense.kv_len.size(0), 2);
  EXPECT_EQ(dense.page_table.data, staged.page_table.data());
  EXPECT_EQ(dense.page_table.size(0), 2);
  EXPECT_EQ(dense.page_table.size(1), 3);
  EXPECT_EQ(dense.page_table.dtype, DType::kInt32);
  EXPECT_FALSE(dense.kv_page_indptr.given());

  const Batch csr = staged.csr();
  EXPECT_EQ(csr.kv_page_indptr.size(0), 3);
  EXPECT_EQ(csr.kv_page_indices.size(0), 5);
  EXPECT_EQ(csr.kv_page_indices.data, staged.kv_page_indices.data());
  EXPECT_FALSE(csr.page_table.given());

  EXPECT_EQ(staged.slots().dtype, DType::kInt64);
  EXPECT_EQ(staged.slots().size(0), 11);
  EXPECT_EQ(staged.slots().data, staged.slot_mapping.data());
}

TEST_F(BatchBuilders, ViewsOfACopyPointIntoTheCopy) {
  const std::array<BatchEntry, 2> entries = {{{make(5), 2}, {make(9), 9}}};
  const StagedBatch staged = builder_.build(entries, block_.bytes()).value();
  Block copy(staged.bytes.size());
  std::ranges::copy(staged.bytes, copy.bytes().begin());
  const Batch batch = staged.csr(copy.bytes().data(), Device::cuda(3));
  EXPECT_EQ(batch.kv_page_indices.device, Device::cuda(3));
  const auto* const indices = static_cast<const PageId*>(batch.kv_page_indices.data);
  EXPECT_GE(static_cast<const void*>(indices), static_cast<const void*>(copy.bytes().data()));
  EXPECT_THAT(std::vector(indices, indices + 5), ElementsAre(0, 1, 2, 3, 4));
}

TEST_F(BatchBuilders, NeedsExactlyTheBytesItSays) {
  const std::array<BatchEntry, 2> entries = {{{make(5), 2}, {make(9), 9}}};
  const std::size_t size = BatchBuilder::staging_size(builder_.tight_shape(entries).value());
  const std::span<std::byte> short_by_one = block_.bytes().first(size - 1);
  EXPECT_EQ(builder_.build(entries, short_by_one).status().code(), ErrorCode::kWorkspaceTooSmall);
  EXPECT_TRUE(block_.untouched());
  const StagedBatch batch = builder_.build(entries, block_.bytes().first(size)).value();
  EXPECT_EQ(batch.bytes.size(), size);
  EXPECT_TRUE(std::ranges::all_of(block_.bytes().subspan(size),
                                  [](std::byte byte) { return byte == Block::kUntouched; }));
}

TEST_F(BatchBuilders, TheBytesDependOnTheEntriesAlone) {
  const std::array<BatchEntry, 2> entries = {{{make(5), 1}, {make(9), 2}}};
  const std::span<const std::byte> first = builder_.build(entries, block_.bytes()).value().bytes;
  Block other(4096);
  std::ranges::fill(other.bytes(), std::byte{0x3C});
  const std::span<const std::byte> second = builder_.build(entries, other.bytes()).value().bytes;
  EXPECT_TRUE(std::ranges::equal(first, second));
}

TEST(BatchBuilder, ABlockForLargerSizesIsEnoughForSmallerOnes) {
  std::mt19937 random(7);
  const auto up_to = [&random](std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(BatchShape::kOmitted, max)(random);
  };
  for (int i = 0; i < 2000; ++i) {
    const BatchShape large{up_to(40) + 1, up_to(100) + 1, up_to(30), up_to(500)};
    const BatchShape small{
        std::min(large.num_seqs, up_to(40) + 1), std::min(large.total_q, up_to(100) + 1),
        std::min(large.pages_per_seq, up_to(30)), std::min(large.total_pages, up_to(500))};
    EXPECT_LE(BatchBuilder::staging_size(small), BatchBuilder::staging_size(large));
    EXPECT_EQ(BatchBuilder::staging_size(large) % kStagingAlignment, 0U);
  }
}

TEST(BatchBuilder, SizesOutOfRangeHaveNoStagingSize) {
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  EXPECT_EQ(BatchBuilder::staging_size({-1, 0, 0, 0}), 0U);
  EXPECT_EQ(BatchBuilder::staging_size({0, -1, 0, 0}), 0U);
  EXPECT_EQ(BatchBuilder::staging_size({0, 0, -2, 0}), 0U);
  EXPECT_EQ(BatchBuilder::staging_size({kMax - 1, kMax, kMax, kMax}), 0U);
  EXPECT_GT(BatchBuilder::staging_size({0, 0, 0, 0}), 0U);
}

TEST_F(BatchBuilders, RefusesBadEntriesWithASentence) {
  const SeqId seq = make(5);
  const SeqId gone = make(1);
  ASSERT_TRUE(table_.destroy(gone).ok());
  const auto refuse = [this](std::vector<BatchEntry> entries, ErrorCode code, const char* text) {
    expect_refused(entries, code, text);
  };
  refuse({{seq, 1}, {gone, 1}}, ErrorCode::kBadHandle,
         "[batch_builder] entries[1]: expected a live sequence, got slot 1 of generation 1");
  refuse({{seq, 1}, {seq, 1}}, ErrorCode::kInvalidArgument,
         "[batch_builder] entries[1]: expected each sequence once, got slot 0 again");
  refuse({{seq, 6}}, ErrorCode::kInvalidArgument,
         "[batch_builder] entries[0]: expected new_tokens in [0, 5], got 6");
  refuse({{seq, -1}}, ErrorCode::kInvalidArgument,
         "[batch_builder] entries[0]: expected new_tokens in [0, 5], got -1");
}

TEST_F(BatchBuilders, RefusesToWriteIntoSharedPages) {
  const SeqId seq = make(6);
  const SeqId fork = table_.fork(seq, 6).value();
  const std::array<BatchEntry, 1> bad = {{{fork, 1}}};
  expect_refused(bad, ErrorCode::kInvalidArgument,
                 "[batch_builder] entries[0]: expected new tokens in pages of its own, got page 1 "
                 "with 2 references");
  ASSERT_TRUE(table_.append(fork, 1, copies_).ok());
  const std::array<BatchEntry, 2> good = {{{fork, 1}, {seq, 0}}};
  EXPECT_TRUE(builder_.build(good, block_.bytes()).ok());
}

TEST_F(BatchBuilders, RefusesShapesThatAreTooSmallWithASentence) {
  expect_refused(BatchShape{0, 6, 2, 2}, ErrorCode::kTooLong,
                 "[batch_builder] num_seqs: expected at most 0, got 1");
  expect_refused(BatchShape{1, 5, 2, 2}, ErrorCode::kTooLong,
                 "[batch_builder] total_q: expected at most 5, got 6");
  expect_refused(BatchShape{1, 6, 1, 2}, ErrorCode::kTooLong,
                 "[batch_builder] pages_per_seq: expected at most 1, got 2");
  expect_refused(BatchShape{1, 6, 2, 1}, ErrorCode::kTooLong,
                 "[batch_builder] total_pages: expected at most 1, got 2");
  expect_refused(BatchShape{1, 6, -2, 2}, ErrorCode::kTooLong,
                 "[batch_builder] pages_per_seq: expected at most -2, got 2");
}

TEST_F(BatchBuilders, RefusesABlockThatIsShortOrMisalignedWithASentence) {
  const std::array<BatchEntry, 1> entries = {{{make(5), 2}}};
  EXPECT_EQ(builder_.build(entries, block_.bytes().first(8)).status().message(),
            "[batch_builder] staging: expected 128 bytes aligned to 16, got 8 bytes at 0 beyond a "
            "multiple");
  EXPECT_EQ(builder_.build(entries, block_.bytes().subspan(8)).status().message(),
            "[batch_builder] staging: expected 128 bytes aligned to 16, got 4088 bytes at 8 beyond "
            "a multiple");
  EXPECT_TRUE(block_.untouched());
}

TEST(BatchBuilder, OutlivesTheTableObjectAndMoves) {
  PagePool pool({.num_pages = 4, .page_size = 4});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 16});
  BatchBuilder builder(table);
  const PageTable moved_table = std::move(table);
  BatchBuilder moved = std::move(builder);
  Block block(256);
  EXPECT_TRUE(moved.build({}, block.bytes()).ok());
}

// Every array against its definition, over random tables.
TEST(BatchBuilder, RandomBatchesAreWhatTheTableSays) {
  std::mt19937 random(11);
  const auto up_to = [&random](std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random);
  };
  for (int round = 0; round < 300; ++round) {
    const std::int32_t page_size = 1 + up_to(8);
    PagePool pool({.num_pages = 200, .page_size = page_size});
    PageTable table(pool, {.max_seqs = 20, .max_tokens_per_seq = 100});
    BatchBuilder builder(table);
    std::vector<CopyOp> copies;
    std::vector<BatchEntry> entries;
    for (std::int32_t i = up_to(8); i-- > 0;) {
      const SeqId seq = table.create().value();
      const std::int32_t cached = up_to(20);
      ASSERT_TRUE(table.append(seq, cached, copies).ok());
      const SeqId used = up_to(1) == 0 ? seq : table.fork(seq, up_to(cached)).value();
      const std::int32_t new_tokens = up_to(9);
      ASSERT_TRUE(table.append(used, new_tokens, copies).ok());
      entries.push_back({used, new_tokens});
    }
    std::ranges::shuffle(entries, random);
    const BatchShape tight = builder.tight_shape(entries).value();
    const BatchShape shape{tight.num_seqs + up_to(3), tight.total_q + up_to(3),
                           tight.pages_per_seq + up_to(3), tight.total_pages + up_to(3)};
    Block block(BatchBuilder::staging_size(shape));
    const StagedBatch batch = builder.build(entries, shape, block.bytes()).value();

    std::size_t row = 0;
    std::size_t token = 0;
    std::size_t page_index = 0;
    for (const BatchEntry& entry : entries) {
      const std::int32_t length = table.length(entry.seq);
      ASSERT_EQ(batch.kv_len[row], length);
      ASSERT_EQ(batch.qo_indptr[row + 1] - batch.qo_indptr[row], entry.new_tokens);
      for (std::int32_t position = length - entry.new_tokens; position < length; ++position) {
        ASSERT_EQ(batch.positions[token], position);
        ASSERT_EQ(batch.slot_mapping[token], table.slot(entry.seq, position));
        ++token;
      }
      const auto columns = static_cast<std::size_t>(shape.pages_per_seq);
      const auto cells = batch.page_table.subspan(row * columns, columns);
      std::size_t column = 0;
      for (const PageId page : table.pages(entry.seq)) {
        ASSERT_EQ(cells[column++], page);
        ASSERT_EQ(batch.kv_page_indices[page_index++], page);
      }
      for (; column < columns; ++column) ASSERT_EQ(cells[column], kNoPage);
      ASSERT_EQ(static_cast<std::size_t>(batch.kv_page_indptr[row + 1]), page_index);
      if (length > 0) {
        const auto held = static_cast<std::int32_t>(table.pages(entry.seq).size());
        ASSERT_EQ((held - 1) * page_size + batch.kv_last_page_len[row], length);
      }
      ++row;
    }
    ASSERT_EQ(batch.qo_indptr.back(), batch.num_tokens);
    for (; token < batch.slot_mapping.size(); ++token) ASSERT_EQ(batch.slot_mapping[token], -1);
  }
}

TEST_F(BatchBuilders, FindsWhoBeginsWithTheSamePages) {
  const SeqId root = make(9);                            // pages 0, 1, 2
  const SeqId other = make(3);                           // page 3
  const SeqId sample = table_.fork(root, 8).value();     // 0, 1
  ASSERT_TRUE(table_.append(sample, 5, copies_).ok());   // 0, 1, 4, 5
  const SeqId second = table_.fork(sample, 12).value();  // 0, 1, 4
  ASSERT_TRUE(table_.append(second, 1, copies_).ok());   // 0, 1, 4, 6
  std::array<BatchEntry, 4> entries = {{{other, 1}, {second, 1}, {root, 1}, {sample, 1}}};
  std::array<std::int32_t, 5 * kMaxPrefixLevels> leaders{};
  std::array<std::int32_t, 5 * kMaxPrefixLevels> pages{};
  ASSERT_TRUE(builder_.find_prefixes(entries, leaders, pages).ok());
  EXPECT_THAT(leaders, ElementsAre(-1, 1, 1, 1, -1, -1, 1, -1, 1, -1, -1, -1, -1, -1, -1));
  EXPECT_THAT(pages, ElementsAre(0, 2, 2, 2, 0, 0, 3, 0, 3, 0, 0, 0, 0, 0, 0));
  entries[1].new_tokens = 0;
  ASSERT_TRUE(builder_.find_prefixes(entries, leaders, pages).ok());
  EXPECT_THAT(leaders, ElementsAre(-1, -1, 2, 2, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  EXPECT_THAT(pages, ElementsAre(0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
}

TEST(BatchBuilder, EntriesOfManyNewTokensAreInNoGroup) {
  PagePool pool({.num_pages = 99, .page_size = 4});
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = 200});
  BatchBuilder builder(table);
  std::vector<CopyOp> copies;
  std::array<BatchEntry, 2> entries;
  entries[0] = {table.create().value(), 1};
  ASSERT_TRUE(table.append(entries[0].seq, 9, copies).ok());
  std::array<std::int32_t, 2 * kMaxPrefixLevels> leaders{};
  std::array<std::int32_t, 2 * kMaxPrefixLevels> pages{};
  for (const std::int32_t new_tokens : {64, 65}) {
    entries[1] = {table.fork(entries[0].seq, 8).value(), new_tokens};
    ASSERT_TRUE(table.append(entries[1].seq, new_tokens, copies).ok());
    ASSERT_TRUE(builder.find_prefixes(entries, leaders, pages).ok());
    EXPECT_EQ(leaders[1], new_tokens == 64 ? 0 : -1);
    ASSERT_TRUE(table.destroy(entries[1].seq).ok());
  }
}

TEST_F(BatchBuilders, RefusesArraysThatGroupsDoNotFit) {
  const std::array<BatchEntry, 2> entries = {{{make(5), 0}, {make(5), 0}}};
  std::array<std::int32_t, 6> leaders{};
  std::array<std::int32_t, 6> pages{};
  const auto expect_status = [&](std::size_t num_leaders, std::size_t num_pages, ErrorCode code,
                                 std::string_view text) {
    const Status status = builder_.find_prefixes(entries, std::span(leaders).first(num_leaders),
                                                 std::span(pages).first(num_pages));
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(status.message(), text);
  };
  expect_status(6, 5, ErrorCode::kInvalidArgument,
                "[batch_builder] leaders, pages: expected [3, num_seqs] of both, got 6 and 5");
  expect_status(5, 5, ErrorCode::kInvalidArgument,
                "[batch_builder] leaders, pages: expected [3, num_seqs] of both, got 5 and 5");
  expect_status(3, 3, ErrorCode::kTooLong, "[batch_builder] num_seqs: expected at most 1, got 2");
  ASSERT_TRUE(table_.destroy(entries[1].seq).ok());
  expect_status(6, 6, ErrorCode::kBadHandle,
                "[batch_builder] entries[1]: expected a live sequence, got slot 1 of generation 1");
}

TEST(BatchBuilder, TwoEntriesAreGroupedAsFarAsTheirTablesAreTheSame) {
  std::mt19937 random(19);
  const auto up_to = [&](std::int32_t most) {
    return std::uniform_int_distribution<std::int32_t>(0, most)(random);
  };
  int deep = 0;
  for (int round = 0; round < 60; ++round) {
    PagePool pool({.num_pages = 6000, .page_size = 2});
    PageTable table(pool, {.max_seqs = 24, .max_tokens_per_seq = 4000});
    BatchBuilder builder(table);
    std::vector<CopyOp> copies;
    std::vector<BatchEntry> entries;
    while (entries.size() < 24) {
      const bool forks = !entries.empty() && up_to(5) > 0;
      const auto parent = static_cast<std::size_t>(up_to(static_cast<int>(entries.size()))) %
                          std::max<std::size_t>(1, entries.size());
      const SeqId seq =
          forks ? table.fork(entries[parent].seq, up_to(table.length(entries[parent].seq))).value()
                : table.create().value();
      ASSERT_TRUE(table.append(seq, up_to(3) == 0 ? up_to(300) : up_to(5), copies).ok());
      entries.push_back({seq, 0});
    }
    for (BatchEntry& entry : entries) {  // all are behind what is shared then
      ASSERT_TRUE(table.append(entry.seq, 1, copies).ok());
      entry.new_tokens = 1;
    }
    std::ranges::shuffle(entries, random);
    const std::size_t num_seqs = entries.size();
    std::vector<std::int32_t> leaders(kMaxPrefixLevels * num_seqs);
    std::vector<std::int32_t> pages(leaders.size());
    ASSERT_TRUE(builder.find_prefixes(entries, leaders, pages).ok());
    for (std::size_t a = 0; a < num_seqs; ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        const auto whole_pages = [&](SeqId seq) {
          return table.pages(seq).first(static_cast<std::size_t>((table.length(seq) - 1) / 2));
        };
        const std::span<const PageId> of_a = whole_pages(entries[a].seq);
        const auto same = std::ranges::mismatch(of_a, whole_pages(entries[b].seq)).in1;
        std::int32_t grouped = 0;
        int level = 0;
        for (; level < kMaxPrefixLevels; ++level) {
          const std::size_t row = static_cast<std::size_t>(level) * num_seqs;
          if (leaders[row + a] < 0 || leaders[row + a] != leaders[row + b]) break;
          ASSERT_EQ(pages[row + a], pages[row + b]);
          ASSERT_GT(pages[row + a], grouped);
          grouped = pages[row + a];
        }
        const auto expected = static_cast<std::int32_t>(same - of_a.begin());
        if (level < kMaxPrefixLevels) {
          ASSERT_EQ(grouped, expected);
        } else {
          ASSERT_LE(grouped, expected);
        }
        deep += static_cast<int>(level > 1);
      }
    }
  }
  EXPECT_GT(deep, 100);
}

}  // namespace
}  // namespace quire
