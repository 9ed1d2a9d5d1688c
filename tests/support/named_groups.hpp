// SPDX-License-Identifier: Apache-2.0
/// @file
/// The groups that tables make, as a caller names them who knows them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "core/problem.hpp"
#include "quire/attention.hpp"

namespace quire::testing {

/// Groups of requests that share prefixes.
struct NamedGroups {
  explicit NamedGroups(std::size_t requests)
      : num_seqs(requests), leaders(kMaxPrefixLevels * requests, -1), pages(leaders.size(), 0) {}

  /// @return Place of a request in both arrays.
  [[nodiscard]] std::size_t at(std::int32_t level, std::size_t seq) const {
    return static_cast<std::size_t>(level) * num_seqs + seq;
  }
  [[nodiscard]] core::PrefixGroups arrays() const {
    const auto stride = static_cast<std::int64_t>(num_seqs);
    return {kMaxPrefixLevels, leaders.data(), stride, pages.data(), stride};
  }

  std::size_t num_seqs;
  std::vector<std::int32_t> leaders;  // [kMaxPrefixLevels, num_seqs]
  std::vector<std::int32_t> pages;    // [kMaxPrefixLevels, num_seqs]
  bool is_complete = true;            ///< there is no group below those of the last level
};

using PageTables = std::vector<std::vector<std::int32_t>>;

/// Names the groups of `seqs`, whose tables begin with the same `depth` pages, from a level on.
inline void name_groups(const PageTables& tables, const std::vector<std::size_t>& seqs,
                        std::size_t depth, std::int32_t level, std::mt19937& random,
                        NamedGroups& groups) {
  std::map<std::int32_t, std::vector<std::size_t>> by_next_page;
  for (const std::size_t seq : seqs) {
    if (tables[seq].size() <= depth || tables[seq][depth] < 0) continue;
    by_next_page[tables[seq][depth]].push_back(seq);
  }
  for (const auto& [page, members] : by_next_page) {
    if (members.size() < 2) continue;
    if (level == kMaxPrefixLevels) {
      groups.is_complete = false;
      return;
    }
    const std::size_t leader = members[random() % members.size()];
    std::size_t end = tables[leader].size();
    for (const std::size_t seq : members) {
      const auto same = std::ranges::mismatch(tables[leader], tables[seq]).in1;
      end = std::min(end, static_cast<std::size_t>(same - tables[leader].begin()));
    }
    for (const std::size_t seq : members) {
      groups.leaders[groups.at(level, seq)] = static_cast<std::int32_t>(leader);
      groups.pages[groups.at(level, seq)] = static_cast<std::int32_t>(end);
    }
    name_groups(tables, members, end, level + 1, random, groups);
  }
}

/// The groups of some tables, each led by anybody of it.
inline NamedGroups named_groups(const PageTables& tables, std::mt19937& random) {
  NamedGroups groups(tables.size());
  std::vector<std::size_t> all;
  for (std::size_t seq = 0; seq < tables.size(); ++seq) all.push_back(seq);
  name_groups(tables, all, 0, 0, random, groups);
  return groups;
}

/// Makes groups anything but a tree.
inline void spoil(NamedGroups& groups, std::mt19937& random) {
  const auto pick = [&](std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random);
  };
  const std::int32_t most_leaders = pick(0, 6);
  for (std::int32_t& leader : groups.leaders) {
    leader = pick(0, 30) == 0 ? static_cast<std::int32_t>(random()) : pick(-1, most_leaders);
  }
  for (std::int32_t& pages : groups.pages) {
    pages = pick(0, 30) == 0 ? static_cast<std::int32_t>(random()) : pick(0, 12);
  }
}

}  // namespace quire::testing
