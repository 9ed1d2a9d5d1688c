// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `BatchBuilder` holds: marks of the sequences that a call has seen, and what its last call wrote
/// where, so that `update` finds what of it stays.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "batching/staging_layout.hpp"
#include "cache/page_table_state.hpp"
#include "quire/batch_builder.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

struct BatchBuilderState {
  static constexpr std::int32_t kNowhere = -1;

  /// A row of the page tables.
  struct Row {
    SeqId seq;
    std::uint64_t edits = 0;       ///< of the sequence's entries, when they were written
    std::int32_t pages = 0;        ///< of the sequence, holes included
    std::int32_t holes = 0;        ///< of these
    std::size_t begin = 0;         ///< in kv_page_indices
    std::int32_t kept = 0;         ///< entries at its beginning that the block has already
    std::int32_t from = kNowhere;  ///< the row of the block that has them
  };
  /// Page ids of a block that move inside an array of it.
  struct Move {
    std::size_t from = 0;
    std::size_t to = 0;
    std::size_t count = 0;
  };

  explicit BatchBuilderState(std::shared_ptr<PageTableState> sequences);

  /// Takes a block of which nothing is known.
  void take(const std::byte* block, const BatchShape& shape) noexcept;
  /// Writes what the entries, of which `next` has the rows, need and the block does not have.
  void write(std::span<const BatchEntry> entries, const batching::Arrays& to) noexcept;

  /// Names the groups of live sequences that begin with the same pages.
  void find_prefixes(std::span<const BatchEntry> entries, std::span<std::int32_t> leaders,
                     std::span<std::int32_t> pages) noexcept;

  std::shared_ptr<PageTableState> table;
  std::vector<std::uint64_t> last_use;  ///< by slot of the table: number of the call that saw it
  std::uint64_t num_calls = 0;

  std::int32_t max_q_len = 0;   ///< of that call
  std::int32_t max_kv_len = 0;  ///< likewise

  std::vector<Row> next;  ///< rows of the call
  std::vector<Row> rows;  ///< rows of the block, of which `num_rows` are in use
  std::size_t num_rows = 0;
  std::vector<std::uint32_t>
      row_of;  ///< by slot: the row that it had when last staged; another's by now, unless it says so
  std::vector<Move> moves;  ///< scratch of `move_pages`
  std::vector<std::int32_t>
      order;  ///< scratch of `find_prefixes`: entries, those of a group together
  const std::byte* block = nullptr;  ///< what was written last
  BatchShape shape;                  ///< its
  std::size_t used_rows = 0;         ///< of its dense table: those beyond are padding
  std::size_t used_pages = 0;        ///< of its CSR table, likewise

 private:
  [[nodiscard]] bool has_csr() const noexcept { return shape.total_pages != BatchShape::kOmitted; }
  /// @return Of the dense table; 0 without one.
  [[nodiscard]] std::size_t columns() const noexcept {
    return static_cast<std::size_t>(std::max(shape.pages_per_seq, 0));
  }
  [[nodiscard]] std::int32_t row_with(SeqId seq) const noexcept;
  void find_kept(std::span<Row> now) noexcept;
  std::size_t write_lengths(std::span<const BatchEntry> entries,
                            const batching::Arrays& to) noexcept;
  void add_move(const Move& move) noexcept;
  void carry_out_moves(std::span<PageId> pages) noexcept;
  void move_kept(std::span<const Row> now, const batching::Arrays& to) noexcept;
  PageId* copy_changed(const Row& row, PageId* begin) const noexcept;
  void patch_dense(const Row& row, PageId* begin) const noexcept;
  void write_pages(std::span<const Row> now, std::size_t num_pages,
                   const batching::Arrays& to) noexcept;
  void fill_new_holes(const Row& row, PageId* begin) const noexcept;
  [[nodiscard]] std::span<const PageId> table_row(const Row& row) const noexcept {
    return {table->row(static_cast<std::int32_t>(row.seq.slot)),
            static_cast<std::size_t>(row.pages)};
  }
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
