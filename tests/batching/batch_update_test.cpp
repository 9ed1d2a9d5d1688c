// SPDX-License-Identifier: Apache-2.0
// Blocks whose rows stay from batch to batch: whatever has happened to the sequences meanwhile, their bytes
// are those of a build.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "batching/updated_block.hpp"
#include "quire/batch_builder.hpp"

namespace quire {
namespace {

/// Sequences of two to seven pages of four tokens, and a block of both tables.
class BatchUpdates : public testing::Test {
 protected:
  static constexpr BatchShape kShape{6, 40, 10, 60};

  SeqId make(std::int32_t tokens) {
    const SeqId seq = table_.create().value();
    EXPECT_TRUE(table_.append(seq, tokens, copies_).ok());
    return seq;
  }
  void append(SeqId seq, std::int32_t tokens) {
    const Status status = table_.append(seq, tokens, copies_);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  StagedBatch update(const std::vector<SeqId>& seqs) {
    std::vector<BatchEntry> entries;
    for (const SeqId seq : seqs) entries.push_back({seq, 0});
    return builder_.update(entries, kShape, block_).value();
  }
  /// Marks entries of both tables, to see later whether they were written again.
  void mark(const StagedBatch& batch) {
    std::ranges::fill(writable(batch.page_table), kMark);
    std::ranges::fill(writable(batch.kv_page_indices), kMark);
  }
  static std::int64_t count_marks(std::span<const PageId> pages) {
    return std::ranges::count(pages, kMark);
  }

  PagePool pool_{{.num_pages = 60, .page_size = 4}};
  PageTable table_{pool_, {.max_seqs = 6, .max_tokens_per_seq = 40}};
  BatchBuilder builder_{table_};
  std::vector<CopyOp> copies_;
  std::vector<std::byte> block_ = std::vector<std::byte>(BatchBuilder::staging_size(kShape));

 private:
  static constexpr PageId kMark = 4711;

  static std::span<PageId> writable(std::span<const PageId> pages) {
    return {const_cast<PageId*>(pages.data()), pages.size()};
  }
};

TEST_F(BatchUpdates, ADecodeWritesAnEntryOnceInAPage) {
  const std::vector<SeqId> seqs = {make(7), make(11), make(7)};
  StagedBatch batch = update(seqs);
  mark(batch);
  for (const SeqId seq : seqs) append(seq, 1);  // fills the last pages
  batch = update(seqs);
  EXPECT_EQ(count_marks(batch.page_table), 60);
  EXPECT_EQ(count_marks(batch.kv_page_indices), 60);
  append(seqs[1], 1);
  batch = update(seqs);
  EXPECT_EQ(count_marks(batch.page_table), 59);
  EXPECT_EQ(batch.page_table[13], table_.pages(seqs[1]).back());
  EXPECT_EQ(count_marks(batch.kv_page_indices), 59);
  EXPECT_EQ(batch.kv_page_indices[5], table_.pages(seqs[1]).back());
}

TEST_F(BatchUpdates, OnlyWhatIsBehindATruncationIsWrittenAgain) {
  const SeqId seq = make(28);
  StagedBatch batch = update({seq});
  mark(batch);
  ASSERT_TRUE(table_.truncate(seq, 21).ok());
  append(seq, 5);
  ASSERT_TRUE(table_.truncate(seq, 25).ok());
  append(seq, 2);
  batch = update({seq});
  EXPECT_EQ(count_marks(batch.page_table), 60 - 1);
  EXPECT_EQ(batch.page_table[6], table_.pages(seq)[6]);
}

TEST_F(BatchUpdates, MoreTruncationsThanAreRememberedWriteTheWholeRow) {
  const SeqId seq = make(28);
  mark(update({seq}));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(table_.truncate(seq, 24).ok());
    append(seq, 4);
  }
  EXPECT_EQ(count_marks(update({seq}).page_table), 60 - 7);
}

TEST_F(BatchUpdates, RowsBehindASequenceThatHasLeftMoveUp) {
  const std::vector<SeqId> seqs = {make(8), make(12), make(8), make(4)};
  mark(update(seqs));
  const StagedBatch batch = update({seqs[0], seqs[2], seqs[3]});
  EXPECT_EQ(count_marks(batch.page_table), 60 - 10) << "the row that is padding now";
  EXPECT_EQ(count_marks(batch.kv_page_indices), 60 - 3);
}

TEST_F(BatchUpdates, TheLastSequenceMayTakeThePlaceOfOneThatHasLeft) {
  const std::vector<SeqId> seqs = {make(8), make(12), make(8), make(4)};
  mark(update(seqs));
  const StagedBatch batch = update({seqs[3], seqs[1], seqs[2]});
  EXPECT_EQ(count_marks(batch.page_table), 60 - 10 - 10) << "its row, and the one that is padding";
}

TEST_F(BatchUpdates, AnotherBlockOrShapeIsWrittenWhole) {
  const SeqId seq = make(8);
  mark(update({seq}));
  std::vector<std::byte> other(block_.size());
  const std::vector<BatchEntry> entries = {{seq, 0}};
  const BatchShape larger{6, 41, 10, 60};
  EXPECT_EQ(count_marks(builder_.update(entries, kShape, other).value().page_table), 0);
  EXPECT_EQ(count_marks(update({seq}).page_table), 0) << "not the last block any more";
  mark(update({seq}));
  other.resize(BatchBuilder::staging_size(larger));
  EXPECT_EQ(count_marks(builder_.update(entries, larger, other).value().page_table), 0);
  mark(update({seq}));
  EXPECT_EQ(count_marks(builder_.build(entries, kShape, block_).value().page_table), 0);
}

TEST_F(BatchUpdates, ACallThatFailsLeavesTheBlockAndWhatIsKnownOfIt) {
  const SeqId seq = make(8);
  const StagedBatch batch = update({seq});
  mark(batch);
  const std::vector<std::byte> before = block_;
  const std::vector<BatchEntry> twice = {{seq, 0}, {seq, 0}};
  EXPECT_EQ(builder_.update(twice, kShape, block_).status().message(),
            "[batch_builder] entries[1]: expected each sequence once, got slot 0 again");
  const std::vector<BatchEntry> once = {{seq, 8}};
  EXPECT_EQ(builder_.update(once, {6, 7, 10, 60}, block_).status().message(),
            "[batch_builder] total_q: expected at most 7, got 8");
  EXPECT_EQ(builder_.update(once, kShape, std::span(block_).first(8)).status().code(),
            ErrorCode::kWorkspaceTooSmall);
  EXPECT_EQ(block_, before);
  EXPECT_EQ(count_marks(update({seq}).page_table), 60);
}

/// Random calls to a table, between updates of a block of random sequences in a random order.
class Editor {
 public:
  Editor(unsigned seed, std::int32_t window_left)
      : random_(seed),
        pool_({.num_pages = 40, .page_size = 1 + up_to(4)}),
        table_(pool_, {.max_seqs = 8, .max_tokens_per_seq = 60, .window_left = window_left}),
        block_(table_) {}

  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      for (std::int32_t edits = up_to(1) == 0 ? 1 : up_to(12); edits > 0; --edits) edit();
      if (up_to(4) == 0) std::ranges::shuffle(seqs_, random_);
      if (up_to(3) == 0 && seqs_.size() > 1) std::swap(seqs_[any()], seqs_[any()]);
      std::vector<BatchEntry> entries;
      for (const SeqId seq : seqs_) {
        if (up_to(8) > 0) entries.push_back({seq, 0});
      }
      block_.expect_as_built(entries);
      ASSERT_FALSE(testing::Test::HasFailure()) << "step " << step;
    }
  }
  [[nodiscard]] std::int64_t num_copies() const {
    return static_cast<std::int64_t>(copies_.size());
  }

 private:
  std::int32_t up_to(std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random_);
  }
  std::size_t any() {
    return static_cast<std::size_t>(up_to(static_cast<std::int32_t>(seqs_.size()) - 1));
  }

  // Refusals, for want of pages say, are as good as any other call.
  void edit() {
    if (seqs_.empty() || up_to(9) == 0) {
      if (const Result<SeqId> made = table_.create(); made.ok()) seqs_.push_back(*made);
      return;
    }
    const std::size_t which = any();
    const SeqId seq = seqs_[which];
    const std::int32_t length = table_.length(seq);
    const std::int32_t cut = up_to(2) == 0 ? up_to(length) : length - std::min(length, up_to(6));
    switch (up_to(8)) {
      case 0:
        if (const Result<SeqId> made = table_.fork(seq, cut); made.ok()) seqs_.push_back(*made);
        break;
      case 1:
        static_cast<void>(table_.truncate(seq, cut));
        break;
      case 2:
        accept(seq, cut);
        break;
      case 3:
        static_cast<void>(table_.slide(seq, length));
        break;
      case 4:
        if (up_to(3) > 0) break;
        static_cast<void>(table_.destroy(seq));
        seqs_.erase(seqs_.begin() + static_cast<std::ptrdiff_t>(which));
        break;
      default:
        static_cast<void>(table_.append(seq, up_to(7), copies_));
    }
  }
  void accept(SeqId seq, std::int32_t length) {
    std::vector<std::int32_t> path;
    for (std::int32_t token = 0; token < table_.length(seq) - length; ++token) {
      if (up_to(1) == 0) path.push_back(token);
    }
    static_cast<void>(table_.accept_tree(seq, length, path, copies_));
  }

  std::mt19937 random_;
  PagePool pool_;
  PageTable table_;
  test::UpdatedBlock block_;
  std::vector<SeqId> seqs_;
  std::vector<CopyOp> copies_;
};

class EditedTables : public testing::TestWithParam<unsigned> {};

TEST_P(EditedTables, AnUpdateWritesTheBytesOfABuild) {
  std::int64_t copies = 0;
  for (const std::int32_t window_left : {-1, -1, 0, 3, 12}) {
    Editor editor(GetParam(), window_left);
    editor.run(400);
    ASSERT_FALSE(HasFailure()) << "seed " << GetParam() << ", window " << window_left;
    copies += editor.num_copies();
  }
  EXPECT_GT(copies, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EditedTables, testing::Range(1U, 41U));

}  // namespace
}  // namespace quire
