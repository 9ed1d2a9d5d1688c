// SPDX-License-Identifier: Apache-2.0
/// @file
/// What the kernel that makes schedules is given, and where things lie in its shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/schedule/prepared_tiles.hpp"
#include "schedule/schedule.hpp"

namespace quire::cuda::scheduler {

// More threads would have fewer registers than the code needs.
inline constexpr int kThreads = 512;
inline constexpr int kWarps = kThreads / kWarpSize;
inline constexpr int kCutWarps = 8;
inline constexpr int kWarpRanges =
    kWarpSize - 2;  // a lane places a cut, a range needs two; an even number
static_assert(kWarpRanges % 2 == 0, "`ranges_together` of them are a warp's");
inline constexpr int kRangeWords = sizeof(schedule::Range) / sizeof(std::int32_t);
static_assert(kWarps % kCutWarps == 0);

// First pages that are compared, and slots of the table for that: so many that most have one alone
// (eight to sixteen for each, up to the most).
inline constexpr int kTableSeqs = 2048;
inline constexpr int kSlotsOfSeq = 8;
inline constexpr int kMostTableBits = 13;
static_assert((1 << kMostTableBits) >= 2 * kTableSeqs);
static_assert(kTableSeqs >= schedule::PrefixPolicy{}.most_seqs);

// Shared memory that a launch asks for at most: enough for 8,192 requests' `kv_len` and the running
// costs of small units.
inline constexpr std::size_t kMostNearBytes = std::size_t{176} << 10;

static_assert(kWarps <= kWarpSize, "the warps' sums are scanned by one warp");

constexpr std::size_t words_bytes(std::int32_t count) {
  constexpr std::size_t kAlignment = 4;
  return (static_cast<std::size_t>(count) + kAlignment - 1) / kAlignment * kAlignment *
         sizeof(std::int32_t);
}

/// An array that is brought near.
struct NearCopy {
  const std::int32_t* from = nullptr;
  std::int32_t count = 0;
  std::uint32_t to = 0;  ///< byte of the shared memory
};

/// What lies in the shared memory that a launch asks for: lengths, first pages, then running costs
/// or what prefixes are searched with.
struct NearLayout {
  static constexpr std::uint32_t kFar = UINT32_MAX;
  static constexpr int kCopies = 3;

  NearCopy copies[kCopies];    // qo_indptr first, which is longest
  std::uint32_t kv_at = kFar;  ///< [num_seqs] keys of requests; kFar: no lengths are near
  std::uint32_t pages_at = 0;  ///< [num_pages] first pages
  std::int32_t num_pages = 0;  ///< num_seqs, or 0: they are not near
  std::uint32_t scratch_at = 0;
  std::uint32_t bytes = 0;  ///< in all
  std::uint32_t costs_at[schedule::kLines] = {kFar, kFar};

  NearLayout() = default;
  /// @param searches  For shared prefixes.
  /// @param most      Bytes.
  NearLayout(const schedule::Policy& policy, const core::BatchArrays& batch, bool searches,
             std::size_t most) {
    const std::int32_t num_seqs = batch.num_seqs;
    if (num_seqs > 0) copy_lengths(batch, searches && num_seqs <= kTableSeqs, most);
    std::size_t at = scratch_at;
    const bool is_whole = !searches && !schedule::has_fixed_parts(policy);
    const std::int64_t num_segments =
        is_whole ? num_seqs : schedule::max_segments(policy, num_seqs);
    for (int line = 0; line < schedule::kLines; ++line) {
      if (policy.lines[line].num_ranges == 0) continue;
      const std::size_t costs = static_cast<std::size_t>(num_segments + 1) * sizeof(std::int64_t);
      if (at + costs > most) break;
      costs_at[line] = static_cast<std::uint32_t>(at);
      at += costs;
    }
    if (searches) {
      at = std::max(at, std::min(most, scratch_at + schedule::prefix_scratch_bytes(num_seqs)));
    }
    bytes = static_cast<std::uint32_t>(at);
  }

 private:
  void copy_lengths(const core::BatchArrays& batch, bool compares_pages, std::size_t most) {
    const std::int32_t num_seqs = batch.num_seqs;
    std::size_t at = 0;
    int copied = 0;
    const auto add = [&](const std::int32_t* from, std::int32_t count) {
      const auto to = static_cast<std::uint32_t>(at);
      copies[copied++] = {from, count, to};
      at += words_bytes(count);
      return to;
    };
    add(batch.qo_indptr, num_seqs + 1);
    std::uint32_t keys = 0;
    if (batch.kv_len != nullptr) {
      keys = add(batch.kv_len, num_seqs);
    } else {
      if (batch.kv_page_indptr != nullptr) {
        add(batch.kv_page_indptr, num_seqs + 1);
        add(batch.kv_last_page_len, num_seqs);
      } else {
        add(batch.kv_indptr, num_seqs + 1);
      }
      keys = static_cast<std::uint32_t>(at);  // computed from them
      at += words_bytes(num_seqs);
    }
    const auto pages = static_cast<std::uint32_t>(at);
    const bool has_pages =
        compares_pages && batch.page_table != nullptr && batch.page_table_width > 0;
    if (has_pages) at += words_bytes(num_seqs);
    if (at > most) {
      for (NearCopy& copy : copies) copy = {};
      return;
    }
    kv_at = keys;
    pages_at = pages;
    num_pages = has_pages ? num_seqs : 0;
    scratch_at = static_cast<std::uint32_t>(at);
  }
};

struct Arguments {
  NearLayout near;
  bool searches = false;                   // for shared prefixes
  bool divides_keys = false;               // into fixed parts
  std::uint32_t lines_to_leave_whole = 0;  // if that pays
  std::int32_t small_chunks = 0;           // ranges of the line of small units, in those of a warp
  std::int32_t table_bits = 0;             // slots of the table are a power of two
  std::int32_t num_chunks = 0;             // of both lines
  std::int32_t num_passes = 0;             // until all have been made
  std::int32_t log_copied = 0;             // of the warps whose ranges are copied at the same time
  core::BatchArrays batch;
  core::ProblemShape shape;
  PreparedTiles tiles[schedule::kLines];
  std::int64_t least_cost[schedule::kLines] = {};
  schedule::ScheduleView schedule;
  const CheckRecord* check = nullptr;
  schedule::Policy policy;
  core::PrefixGroups groups;
};

}  // namespace quire::cuda::scheduler
