// SPDX-License-Identifier: Apache-2.0
/// @file
/// Random page tables that share beginnings, at several levels, and a schedule's arrays over them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "schedule/schedule.hpp"
#include "support/named_groups.hpp"

namespace quire::testing {

/// Requests whose tables grow out of each other, with what a schedule needs to know of them.
struct PageForest {
  core::ProblemShape shape;
  schedule::Policy policy;
  std::vector<std::int32_t> qo_indptr = {0};
  std::vector<std::int32_t> kv_len;
  std::vector<std::int32_t> page_table;  // [num_seqs, width]
  std::int32_t width = 0;

  [[nodiscard]] std::int32_t num_seqs() const { return static_cast<std::int32_t>(kv_len.size()); }
  [[nodiscard]] const std::int32_t* table_of(std::int32_t seq) const {
    return page_table.data() + static_cast<std::ptrdiff_t>(seq) * width;
  }
  [[nodiscard]] core::BatchArrays arrays() const {
    core::BatchArrays batch;
    batch.num_seqs = num_seqs();
    batch.qo_indptr = qo_indptr.data();
    batch.kv_len = kv_len.data();
    batch.page_table = page_table.data();
    batch.page_table_stride = batch.page_table_width = width;
    return batch;
  }
  void add(std::int32_t queries, std::int32_t keys, const std::vector<std::int32_t>& pages) {
    qo_indptr.push_back(qo_indptr.back() + queries);
    kv_len.push_back(keys);
    width = std::max(width, static_cast<std::int32_t>(pages.size()));
    tables_.push_back(pages);
  }
  /// After the last request.
  void finish() {
    ++width;  // an entry that nobody needs
    page_table.assign(kv_len.size() * static_cast<std::size_t>(width), -1);
    for (std::size_t seq = 0; seq < tables_.size(); ++seq) {
      std::ranges::copy(tables_[seq],
                        page_table.begin() + static_cast<std::ptrdiff_t>(seq) * width);
    }
  }

 private:
  std::vector<std::vector<std::int32_t>> tables_;
};

/// A policy as GPUs have it, with which sharing pays soon.
inline schedule::Policy sharing_policy(std::int32_t num_kv_heads, std::int32_t heads_abreast) {
  schedule::TilePolicy small;
  small.up_to_rows = 64;
  small.keys_per_tile = 8;
  small.tile_rows = 32;
  small.num_ranges = 13;
  small.heads_abreast = heads_abreast;
  small.min_split_tiles = 1;
  small.cost_of_unit = 1;
  small.cost_of_tile = 1;
  small.cost_of_row = 0;
  schedule::Policy policy(small);
  schedule::TilePolicy& large = policy.lines[schedule::kLargeUnits];
  large = small;
  large.over_rows = small.up_to_rows;
  large.up_to_rows = INT32_MAX;
  large.keys_per_tile = 16;
  large.tile_rows = 128;
  large.num_ranges = 7;
  large.cost_of_unit = 6;
  large.cost_of_tile = 2;
  policy.prefixes = {1 << 16, num_kv_heads, 64, 64, 1};
  return policy;
}

/// @param most_seqs  Requests at most.
inline PageForest random_forest(std::mt19937& random, std::int32_t most_seqs) {
  const auto pick = [&](std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random);
  };
  PageForest forest;
  forest.shape.num_kv_heads = 1 << pick(0, 2);
  forest.shape.group_size = pick(1, 8);
  forest.shape.num_qo_heads = forest.shape.num_kv_heads * forest.shape.group_size;
  forest.shape.page_size = 1 << pick(0, 4);
  forest.shape.mask = pick(0, 3) == 0 ? Mask::kNone : Mask::kCausal;
  forest.policy =
      sharing_policy(forest.shape.num_kv_heads, pick(0, 1) == 0 ? 1 : forest.shape.num_kv_heads);
  forest.policy.prefixes.least_gain = pick(0, 3) == 0 ? 40 : 1;
  if (pick(0, 5) == 0) forest.policy.prefixes.max_states = pick(2, 60);
  const std::int32_t num_seqs = pick(0, most_seqs);
  const std::int32_t longest = pick(0, 3) == 0 ? 200 : 12;
  std::int32_t next_page = pick(0, 5);
  std::vector<std::vector<std::int32_t>> tables;
  for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
    std::vector<std::int32_t> pages;
    if (!tables.empty() && pick(0, 4) > 0) {  // as another's begins
      pages =
          tables[static_cast<std::size_t>(pick(0, static_cast<std::int32_t>(tables.size()) - 1))];
      pages.resize(static_cast<std::size_t>(pick(0, static_cast<std::int32_t>(pages.size()))));
    }
    for (std::int32_t more = pick(0, longest); more > 0; --more) pages.push_back(next_page++);
    if (pick(0, 40) == 0 && !pages.empty()) pages.front() = -1;
    const auto room = static_cast<std::int32_t>(pages.size()) * forest.shape.page_size;
    const std::int32_t keys = std::max(0, room - pick(0, forest.shape.page_size - 1));
    const std::int32_t queries = pick(0, 3) > 0 ? 1 : pick(0, 30);
    forest.add(queries, keys, pages);
    tables.push_back(pages);
  }
  forest.finish();
  return forest;
}

/// A forest whose prefixes are not looked for, and whose units do not depend on the batch.
inline PageForest invariant_forest(std::mt19937& random, std::int32_t most_seqs) {
  PageForest forest = random_forest(random, most_seqs);
  for (schedule::TilePolicy& line : forest.policy.lines) line.min_split_tiles = INT32_MAX;
  forest.policy.fixed_part_keys = 24;
  forest.policy.prefixes.max_states = schedule::kMostFixedParts * std::max(1, forest.num_seqs());
  return forest;
}

/// Pages that every query of a request sees whole, if the request may share any.
inline std::int32_t shareable_pages(const PageForest& forest, std::int32_t seq) {
  const auto at = static_cast<std::size_t>(seq);
  const std::int32_t queries = forest.qo_indptr[at + 1] - forest.qo_indptr[at];
  if (queries == 0 || queries * forest.shape.group_size > forest.policy.prefixes.most_rows)
    return 0;
  return std::max(0, forest.kv_len[at] - queries) / forest.shape.page_size;
}

/// The first pages of each request's table.
inline PageTables tables_of(const PageForest& forest, const std::vector<std::int32_t>& num_pages) {
  PageTables tables;
  for (std::int32_t seq = 0; seq < forest.num_seqs(); ++seq) {
    const std::int32_t* const first = forest.table_of(seq);
    tables.emplace_back(first, first + num_pages[static_cast<std::size_t>(seq)]);
  }
  return tables;
}

/// What of the tables may be shared.
inline PageTables shareable_tables(const PageForest& forest) {
  std::vector<std::int32_t> pages;
  for (std::int32_t seq = 0; seq < forest.num_seqs(); ++seq) {
    pages.push_back(shareable_pages(forest, seq));
  }
  return tables_of(forest, pages);
}

}  // namespace quire::testing
