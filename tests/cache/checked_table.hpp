// SPDX-License-Identifier: Apache-2.0
/// @file
/// A page table next to a naive oracle. Every token ever appended has a stamp of its own; the
/// oracle keeps each sequence's stamps in a plain vector, the table's pages keep them in a small
/// cache that copy plans are executed on. After each call the two must tell the same.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cache/page_table_state.hpp"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"

namespace quire::test {

/// One call of a table's or a pool's mutating functions.
struct Op {
  enum class Kind {
    kCreate,
    kFork,
    kAppend,
    kTruncate,
    kAcceptTree,
    kSlide,
    kDestroy,
    kRetain,
    kRelease
  };

  Kind kind = Kind::kCreate;
  SeqId seq;
  std::int32_t n = 0;      ///< length, tokens, position or page
  std::uint32_t path = 0;  ///< of kAcceptTree: bit i keeps the token at n + i

  /// @return The tokens that a path keeps, in order.
  [[nodiscard]] std::vector<std::int32_t> kept() const;
};

/// @return The call in words, for failure texts.
std::string describe(const Op& op);

class CheckedTable {
 public:
  struct Live {
    SeqId seq;
    std::vector<std::int64_t> stamps;
    std::int32_t holes = 0;
  };

  /// Everything a call may change: to compare before and after, and to go back.
  struct Snapshot {
    std::vector<internal::PagePoolState::Page> pages;
    std::vector<PageId> free_pages;  // in the order of the list
    std::vector<internal::PageTableState::Sequence> sequences;
    std::vector<std::vector<PageId>> rows;
    std::int32_t first_free_slot = 0;
    std::int32_t num_live = 0;
    std::vector<std::int64_t> cache;
    std::vector<Live> live;
    std::vector<std::int32_t> pins;
    std::vector<SeqId> dead;

    /// @return True if table and pool are the same; the oracle does not matter.
    [[nodiscard]] bool same_table(const Snapshot& other) const;
  };

  CheckedTable(const PagePoolSpec& pool_spec, const PageTableSpec& table_spec);

  /// Makes the call, compares its outcome with what the oracle expects, and everything observable
  /// afterwards. Reports disagreement as a test failure.
  ErrorCode apply(const Op& op);

  /// Appends to several sequences, executes their copies in a random order, then writes.
  void append_together(const std::vector<Op>& appends, std::mt19937& random);

  [[nodiscard]] const std::vector<Live>& live() const { return live_; }
  [[nodiscard]] const std::vector<SeqId>& dead() const { return dead_; }
  [[nodiscard]] const PageTable& table() const { return table_; }
  [[nodiscard]] std::int32_t pins(PageId page) const;
  [[nodiscard]] Snapshot snapshot();
  void restore(const Snapshot& snapshot);

 private:
  [[nodiscard]] Live* find(SeqId seq);
  [[nodiscard]] std::vector<std::int32_t> naive_refs() const;
  [[nodiscard]] std::int32_t naive_need(const Live& live, std::int32_t n) const;
  [[nodiscard]] std::int32_t naive_free() const;
  /// @return Whole pages before the first token that a query at a position sees.
  [[nodiscard]] std::int32_t naive_unseen(std::int32_t position) const;
  [[nodiscard]] ErrorCode expected(const Op& op);
  [[nodiscard]] ErrorCode expected_of_path(const Live& live, const Op& op) const;
  [[nodiscard]] Status call(const Op& op, std::vector<CopyOp>& copies, SeqId& made);
  void follow(const Op& op, SeqId made);
  void write(Live& live, std::int32_t n);
  void execute(const std::vector<CopyOp>& copies);
  void compare();
  void compare_questions(const Live& live, const std::vector<std::int32_t>& refs);

  PagePool pool_;
  PageTable table_;
  std::vector<std::int64_t> cache_;  // [num_pages, page_size] stamps
  std::vector<Live> live_;
  std::vector<std::int32_t> pins_;  // references of the caller, by page
  std::vector<SeqId> dead_;
  std::int64_t next_stamp_ = 1;
};

}  // namespace quire::test
