// SPDX-License-Identifier: Apache-2.0
/// @file
/// An engine's host side at its steadiest: every sequence decodes in every step.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "quire/batch_builder.hpp"
#include "quire/batcher.hpp"

namespace quire::bench {

inline constexpr std::int32_t kPageSize = 16;
inline constexpr std::int32_t kTokens = 8192;  ///< Of a sequence, on average over its steps.
inline constexpr std::int32_t kSteps = 512;    ///< That a sequence decodes before it is replaced.

inline constexpr std::int32_t kMostPages = (kTokens + kSteps / 2) / kPageSize;  ///< Of a sequence.

enum Form : std::int64_t { kBoth = 0, kDense = 1, kCsr = 2 };

/// A pool whose free pages are in random order, as those of a pool that has been in use.
inline PagePool worn_pool(std::int32_t num_pages) {
  PagePool pool({.num_pages = num_pages, .page_size = kPageSize});
  std::vector<PageId> pages(static_cast<std::size_t>(num_pages));
  pool.allocate(pages).throw_if_error();
  std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
  pool.release(pages).throw_if_error();
  return pool;
}

/// As many sequences as asked for, all of which decode.
class Engine {
 public:
  Engine(std::int32_t num_seqs, std::int32_t num_pages, Form form)
      : num_seqs_(num_seqs),
        form_(form),
        pool_(worn_pool(num_pages)),
        table_(pool_, {.max_seqs = num_seqs, .max_tokens_per_seq = kTokens + kSteps / 2}),
        batcher_(table_, {.max_requests = num_seqs}),
        builder_(table_),
        shape_{num_seqs, num_seqs, kMostPages, num_seqs * kMostPages} {
    if (form == kDense) shape_.total_pages = BatchShape::kOmitted;
    if (form == kCsr) shape_.pages_per_seq = BatchShape::kOmitted;
    staging_.resize(BatchBuilder::staging_size(shape_));
    refill();
  }

  /// @return True if the sequences are to be replaced before the next step.
  [[nodiscard]] bool is_over() const { return steps_left_ == 0; }
  /// Replaces all sequences by new ones of the same length.
  void refill() {
    std::vector<std::uint64_t> ids(static_cast<std::size_t>(num_seqs_));
    std::iota(ids.begin(), ids.end(), std::uint64_t{0});
    if (!batcher_.idle()) {
      plan();
      batcher_.finish(plan_, ids, ended_).throw_if_error();
    }
    for (const std::uint64_t id : ids) {
      batcher_.submit({id, kTokens - kSteps / 2, kSteps, 0.0}).throw_if_error();
    }
    plan(num_seqs_ * kTokens);
    batcher_.finish(plan_, {}, ended_).throw_if_error();
    steps_left_ = kSteps - 2;
  }

  void plan(std::int32_t budget = 0) {
    batcher_.plan({std::max(budget, num_seqs_), num_seqs_}, plan_).throw_if_error();
    batcher_.commit(plan_, copies_).throw_if_error();
  }
  StagedBatch build() {
    return form_ == kBoth ? builder_.build(plan_.batch, staging()).value()
                          : builder_.build(plan_.batch, shape_, staging()).value();
  }
  void finish() {
    ended_.clear();
    batcher_.finish(plan_, {}, ended_).throw_if_error();
    --steps_left_;
  }

  [[nodiscard]] bool decodes_all() const {
    return plan_.num_tokens == num_seqs_ && plan_.preempted.empty();
  }
  [[nodiscard]] const StepPlan& last_plan() const { return plan_; }
  [[nodiscard]] BatcherStats stats() const { return batcher_.stats(); }

 private:
  // std::vector<std::byte> aligns as operator new does: to 16 bytes, as the block wants it.
  std::span<std::byte> staging() { return staging_; }

  std::int32_t num_seqs_;
  Form form_;
  PagePool pool_;
  PageTable table_;
  Batcher batcher_;
  BatchBuilder builder_;
  BatchShape
      shape_;  ///< Of every step, as a captured graph wants it; with both forms: what it needs.
  StepPlan plan_;
  std::vector<CopyOp> copies_;
  std::vector<std::uint64_t> ended_;
  std::vector<std::byte> staging_;
  std::int32_t steps_left_ = 0;
};

}  // namespace quire::bench
