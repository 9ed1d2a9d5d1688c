// SPDX-License-Identifier: Apache-2.0
/// @file
/// An engine's host side at its steadiest: every sequence decodes in every step. And at its usual: some end
/// in every step, and as many prompts come.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "quire/batch_builder.hpp"
#include "quire/batcher.hpp"

namespace quire::bench {

inline constexpr std::int32_t kPageSize = 16;
inline constexpr std::int32_t kTokens = 8192;  ///< Of a sequence, on average over its steps.
inline constexpr std::int32_t kSteps = 512;    ///< That a sequence decodes before it is replaced.

inline constexpr std::int32_t kMostPages = (kTokens + kSteps / 2) / kPageSize;  ///< Of a sequence.

/// Forms of the page table; `kUpdated` is both, in a block whose rows stay from step to step.
enum Form : std::int64_t { kBoth = 0, kDense = 1, kCsr = 2, kUpdated = 3 };

/// A pool whose free pages are in random order, as those of a pool that has been in use.
inline PagePool worn_pool(std::int32_t num_pages) {
  PagePool pool({.num_pages = num_pages, .page_size = kPageSize});
  std::vector<PageId> pages(static_cast<std::size_t>(num_pages));
  pool.allocate(pages).throw_if_error();
  std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
  pool.release(pages).throw_if_error();
  return pool;
}

/// As many sequences as asked for, all of which decode, but for those that replace others.
class Engine {
 public:
  /// @param turnover  Sequences that end in each step, and prompts that come.
  Engine(std::int32_t num_seqs, std::int32_t num_pages, Form form, std::int32_t turnover = 0)
      : num_seqs_(num_seqs),
        turnover_(turnover),
        form_(form),
        pool_(worn_pool(num_pages)),
        table_(pool_, {.max_seqs = num_seqs, .max_tokens_per_seq = kTokens + kSteps / 2}),
        batcher_(table_, {.max_requests = num_seqs}),
        builder_(table_),
        shape_{num_seqs, num_seqs + turnover * kTokens, kMostPages, num_seqs * kMostPages},
        live_(static_cast<std::size_t>(num_seqs)) {
    if (form == kDense) shape_.total_pages = BatchShape::kOmitted;
    if (form == kCsr) shape_.pages_per_seq = BatchShape::kOmitted;
    staging_.resize(BatchBuilder::staging_size(shape_));
    refill();
  }

  /// @return True if the sequences are to be replaced before the next step.
  [[nodiscard]] bool is_over() const { return steps_left_ == 0; }
  /// Replaces all sequences by new ones of the same length.
  void refill() {
    if (!batcher_.idle()) {
      plan();
      batcher_.finish(plan_, live_, ended_).throw_if_error();
    }
    for (std::uint64_t& id : live_) id = submit();
    plan(num_seqs_ * kTokens);
    batcher_.finish(plan_, {}, ended_).throw_if_error();
    steps_left_ = kSteps - 2;
  }

  void plan(std::int32_t budget = 0) {
    batcher_.plan({std::max(budget, shape_.total_q), num_seqs_}, plan_).throw_if_error();
    batcher_.commit(plan_, copies_).throw_if_error();
  }
  StagedBatch build() {
    if (form_ == kUpdated) return builder_.update(plan_.batch, shape_, staging()).value();
    return form_ == kBoth ? builder_.build(plan_.batch, staging()).value()
                          : builder_.build(plan_.batch, shape_, staging()).value();
  }
  void finish() {
    ended_.clear();
    stopped_.clear();
    for (std::int32_t i = 0; i < turnover_; ++i) stopped_.push_back(replaced(i));
    batcher_.finish(plan_, stopped_, ended_).throw_if_error();
    for (std::int32_t i = 0; i < turnover_; ++i) replaced(i) = submit();
    num_replaced_ += turnover_;
    --steps_left_;
  }

  [[nodiscard]] bool decodes_all() const {
    return std::cmp_equal(plan_.items.size(), num_seqs_) && plan_.preempted.empty() &&
           plan_.num_tokens <= shape_.total_q;
  }
  [[nodiscard]] const StepPlan& last_plan() const { return plan_; }
  [[nodiscard]] BatcherStats stats() const { return batcher_.stats(); }

 private:
  /// @return The id of a sequence that ends in this step: not those beside one another.
  std::uint64_t& replaced(std::int32_t which) {
    constexpr std::int64_t kStride = 7;
    return live_[static_cast<std::size_t>((num_replaced_ + which) * kStride % num_seqs_)];
  }
  std::uint64_t submit() {
    batcher_.submit({next_id_, kTokens - kSteps / 2, kSteps, 0.0}).throw_if_error();
    return next_id_++;
  }
  // std::vector<std::byte> aligns as operator new does: to 16 bytes, as the block wants it.
  std::span<std::byte> staging() { return staging_; }

  std::int32_t num_seqs_;
  std::int32_t turnover_;
  Form form_;
  PagePool pool_;
  PageTable table_;
  Batcher batcher_;
  BatchBuilder builder_;
  BatchShape
      shape_;  ///< Of every step, as a captured graph wants it; with both forms: what it needs.
  StepPlan plan_;
  std::vector<CopyOp> copies_;
  std::vector<std::uint64_t> live_;
  std::vector<std::uint64_t> stopped_;
  std::vector<std::uint64_t> ended_;
  std::uint64_t next_id_ = 0;
  std::int64_t num_replaced_ = 0;
  std::vector<std::byte> staging_;
  std::int32_t steps_left_ = 0;
};

}  // namespace quire::bench
