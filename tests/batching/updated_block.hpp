// SPDX-License-Identifier: Apache-2.0
/// @file
/// A block whose rows stay from batch to batch, next to one that is built anew each time.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "quire/batch_builder.hpp"

namespace quire::test {

class UpdatedBlock {
 public:
  /// Of all sequences that a table may have, at their longest.
  explicit UpdatedBlock(const PageTable& table) : updater_(table), builder_(table) {
    const std::int32_t page_size = table.pool_spec().page_size;
    shape_.num_seqs = table.spec().max_seqs;
    shape_.pages_per_seq = (table.spec().max_tokens_per_seq + page_size - 1) / page_size;
    shape_.total_pages = shape_.num_seqs * shape_.pages_per_seq;
  }

  /// The block as it is updated must be, byte by byte, what a build writes. More tokens than ever before
  /// make a new block.
  void expect_as_built(std::span<const BatchEntry> entries) {
    std::int32_t tokens = 0;
    for (const BatchEntry& entry : entries) tokens += entry.new_tokens;
    shape_.total_q = std::max(shape_.total_q, tokens);
    const std::size_t size = BatchBuilder::staging_size(shape_);
    updated_.resize(size);
    std::vector<std::byte> built(size, std::byte{0x5A});
    const Result<StagedBatch> expected = builder_.build(entries, shape_, built);
    ASSERT_TRUE(expected.ok()) << expected.status().message();
    const Result<StagedBatch> got = updater_.update(entries, shape_, updated_);
    ASSERT_TRUE(got.ok()) << got.status().message();
    EXPECT_EQ(got->max_q_len, expected->max_q_len);
    EXPECT_EQ(got->max_kv_len, expected->max_kv_len);
    const auto first = std::ranges::mismatch(expected->bytes, got->bytes).in1;
    ASSERT_TRUE(first == expected->bytes.end())
        << "byte " << first - expected->bytes.begin() << " of " << size << ", page table from "
        << reinterpret_cast<const std::byte*>(expected->page_table.data()) - expected->bytes.data();
  }

 private:
  BatchBuilder updater_;
  BatchBuilder builder_;
  BatchShape shape_;
  std::vector<std::byte> updated_;
};

}  // namespace quire::test
