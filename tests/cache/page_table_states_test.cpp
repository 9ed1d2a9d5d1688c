// SPDX-License-Identifier: Apache-2.0
// All states that a small table can be in. From the empty table every possible call is made, then
// from each new state again, until no new one turns up. States that differ in the names of pages
// and slots only count once. In each of them the oracle is asked.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <iostream>
#include <numeric>
#include <ostream>
#include <set>
#include <vector>

#include "cache/checked_table.hpp"

namespace quire::test {
namespace {

using Kind = Op::Kind;
using Canonical = std::vector<std::int32_t>;

constexpr std::int32_t kSeparator = -1;
constexpr std::int32_t kHole = -2;

struct World {
  PagePoolSpec pool;
  PageTableSpec table;
  bool with_pins = false;  // the caller may hold each page as well
  bool by_name = false;
  std::size_t states = 0;  // expected

  friend std::ostream& operator<<(std::ostream& out, const World& world) {
    return out << world.pool.num_pages << " pages of " << world.pool.page_size << ", "
               << world.table.max_seqs << " sequences of at most " << world.table.max_tokens_per_seq
               << (world.table.window_left >= 0 ? ", a window" : "")
               << (world.with_pins ? ", pins" : "") << (world.by_name ? ", by name" : "");
  }
};

/// The state with every name and order in it.
Canonical written_by_name(CheckedTable& table) {
  const CheckedTable::Snapshot state = table.snapshot();
  Canonical text = state.pins;
  for (std::size_t slot = 0; slot < state.rows.size(); ++slot) {
    text.push_back(state.sequences[slot].live ? state.sequences[slot].length : kSeparator);
    for (const PageId page : state.rows[slot]) text.push_back(page == kNoPage ? kHole : page);
    text.push_back(kSeparator);
  }
  text.insert(text.end(), state.free_pages.begin(), state.free_pages.end());
  text.push_back(kSeparator);
  for (std::int32_t slot = state.first_free_slot; slot != internal::PageTableState::kNoSlot;
       slot = state.sequences[static_cast<std::size_t>(slot)].next_free) {
    text.push_back(slot);
  }
  return text;
}

/// Lengths, pages and pins with the sequences in a given order, pages named as they turn up.
Canonical written_in_order(const CheckedTable& table, const std::vector<std::size_t>& order) {
  Canonical text;
  std::vector<PageId> names;
  const auto name = [&names](PageId page) {
    if (page == kNoPage) return kHole;
    const auto found = std::ranges::find(names, page);
    if (found == names.end()) names.push_back(page);
    return static_cast<std::int32_t>(std::ranges::find(names, page) - names.begin());
  };
  for (const std::size_t index : order) {
    const SeqId seq = table.live()[index].seq;
    text.push_back(table.table().length(seq));
    for (const PageId page : table.table().pages(seq)) text.push_back(name(page));
    text.push_back(kSeparator);
  }
  std::vector<std::int32_t> unnamed_pins;
  for (const PageId page : names) text.push_back(table.pins(page));
  for (PageId page = 0; page < table.table().pool_spec().num_pages; ++page) {
    if (std::ranges::find(names, page) == names.end()) unnamed_pins.push_back(table.pins(page));
  }
  std::ranges::sort(unnamed_pins);
  text.insert(text.end(), unnamed_pins.begin(), unnamed_pins.end());
  return text;
}

Canonical canonical(CheckedTable& table, const World& world) {
  if (world.by_name) return written_by_name(table);
  std::vector<std::size_t> order(table.live().size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  Canonical least = written_in_order(table, order);
  while (std::ranges::next_permutation(order).found) {
    least = std::min(least, written_in_order(table, order));
  }
  return least;
}

/// Every call worth making, the refused ones included.
std::vector<Op> all_ops(const CheckedTable& table, const World& world) {
  std::vector<Op> ops = {{Kind::kCreate, {}, 0}};
  for (const CheckedTable::Live& live : table.live()) {
    const auto length = static_cast<std::int32_t>(live.stamps.size());
    for (std::int32_t n = -1; n <= length + 1; ++n) {
      ops.push_back({Kind::kFork, live.seq, n});
      ops.push_back({Kind::kTruncate, live.seq, n});
      ops.push_back({Kind::kSlide, live.seq, n});
    }
    for (std::int32_t n = 0; n <= length; ++n) {
      for (std::uint32_t path = 1; path < 2U << (length - n); ++path) {  // one bit too many
        ops.push_back({Kind::kAcceptTree, live.seq, n, path});
      }
    }
    for (std::int32_t n = 0; n <= world.table.max_tokens_per_seq - length + 1; ++n) {
      ops.push_back({Kind::kAppend, live.seq, n});
    }
    ops.push_back({Kind::kDestroy, live.seq, 0});
  }
  if (!table.dead().empty()) ops.push_back({Kind::kDestroy, table.dead().back(), 0});
  for (PageId page = 0; world.with_pins && page < world.pool.num_pages; ++page) {
    ops.push_back({table.pins(page) > 0 ? Kind::kRelease : Kind::kRetain, {}, page});
  }
  return ops;
}

class AllStates : public testing::TestWithParam<World> {};

TEST_P(AllStates, AgreeWithTheOracle) {
  const World& world = GetParam();
  CheckedTable table(world.pool, world.table);
  std::set<Canonical> seen = {canonical(table, world)};
  std::deque<std::pair<CheckedTable::Snapshot, int>> frontier;
  frontier.emplace_back(table.snapshot(), 0);
  std::size_t transitions = 0;
  int depth = 0;
  while (!frontier.empty() && !HasFailure()) {
    const auto [state, distance] = std::move(frontier.front());
    frontier.pop_front();
    depth = distance;
    table.restore(state);
    for (const Op& op : all_ops(table, world)) {
      ++transitions;
      const bool changed = table.apply(op) == ErrorCode::kOk;
      if (changed && seen.insert(canonical(table, world)).second) {
        frontier.emplace_back(table.snapshot(), distance + 1);
      }
      if (changed) table.restore(state);
    }
  }
  std::cout << world << ": all " << seen.size() << " states, " << transitions << " calls, at most "
            << depth << " calls from the empty table\n";
  EXPECT_EQ(seen.size(), world.states);
}

INSTANTIATE_TEST_SUITE_P(Worlds, AllStates,
                         testing::Values(World{{3, 1}, {2, 4}, true, true, 1190},
                                         World{{4, 1}, {3, 4}, true, false, 1274},
                                         World{{3, 2}, {2, 6}, true, true, 3512},
                                         World{{3, 2}, {3, 6}, false, true, 4860},
                                         World{{4, 2}, {3, 8}, false, false, 414},
                                         World{{4, 2}, {3, 5}, true, false, 3032},
                                         World{{4, 2}, {2, 8}, false, true, 3384},
                                         World{{3, 1}, {2, 5, 1}, true, false, 772},
                                         World{{3, 2}, {2, 8, 1}, true, false, 1752},
                                         World{{3, 2}, {3, 7, 2}, false, false, 596}));

}  // namespace
}  // namespace quire::test
