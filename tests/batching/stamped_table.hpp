// SPDX-License-Identifier: Apache-2.0
/// @file
/// A table with its pool, and a stamp on each token of its cache: who reads a token sees whose it is.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batching/updated_block.hpp"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"

namespace quire::test {

struct StampedTable {
  StampedTable(const PagePoolSpec& pool_spec, const PageTableSpec& spec)
      : pool(pool_spec),
        table(pool, spec),
        block(table),
        stamps(static_cast<std::size_t>(pool_spec.num_pages) *
               static_cast<std::size_t>(pool_spec.page_size)) {}

  void copy(std::span<const CopyOp> copies) {
    for (const CopyOp& op : copies) {
      for (std::int32_t i = 0; i < op.tokens; ++i) at(op.dst, i) = at(op.src, i);
    }
  }
  /// Writes the tokens [first, end) of a sequence. @param stamp_of  By position.
  template <typename StampOf>
  void write(SeqId seq, std::int32_t first, std::int32_t end, const StampOf& stamp_of) {
    for (std::int32_t position = first; position < end; ++position) {
      const std::int64_t slot = table.slot(seq, position);
      ASSERT_GE(slot, 0) << "a hole to be written, at " << position;
      stamps[static_cast<std::size_t>(slot)] = stamp_of(position);
    }
  }
  /// What a sequence reads from `first` to `end` must be there and its own.
  template <typename StampOf>
  void expect(SeqId seq, std::int32_t first, std::int32_t end, const StampOf& stamp_of) const {
    for (std::int32_t position = first; position < end; ++position) {
      const std::int64_t slot = table.slot(seq, position);
      ASSERT_GE(slot, 0) << "a query sees a hole at " << position;
      ASSERT_EQ(stamps[static_cast<std::size_t>(slot)], stamp_of(position))
          << "it reads somebody else's token at " << position;
    }
  }

  PagePool pool;
  PageTable table;
  UpdatedBlock block;
  std::vector<std::uint64_t> stamps;  ///< by slot

 private:
  std::uint64_t& at(PageId page, std::int32_t offset) {
    return stamps[static_cast<std::size_t>(page) * static_cast<std::size_t>(pool.spec().page_size) +
                  static_cast<std::size_t>(offset)];
  }
};

}  // namespace quire::test
