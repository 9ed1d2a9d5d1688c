// SPDX-License-Identifier: Apache-2.0
/// @file
/// Shared prefixes, found from the page tables or named by the caller: requests whose tables begin with
/// the same page ids read the same keys, which one segment with the queries of all of them reads once.
/// Include schedule.hpp instead.
///
/// The tables' common beginnings are a tree: requests with the same first page are a node, whose
/// keys are the pages that all of them begin with; those of a node that go on with the same page are
/// a node below it. A node that saves more than it costs becomes a segment; the keys of one that does
/// not belong to those below it. Only whole pages that every query of every request sees count.
///
/// Groups that the caller names are asked what tables would be: what comes behind so many pages (the
/// first group that has more), and how far two requests agree (to the end of the last group of both).
/// So the tree is the one of the tables, and whatever is named makes a tree, of pages that requests have.
///
/// One algorithm for one thread of the host and a block of the device: whoever runs it is a `Team`.
/// The tree does not depend on the team's size or on the order in which its threads run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schedule/schedule.hpp"
#include "schedule/team.hpp"

namespace quire::schedule {

namespace detail {

QUIRE_HOST_DEVICE constexpr std::int32_t power_of_two_from(std::int32_t least) {
  std::int32_t power = 1;
  while (power < least) power *= 2;
  return power;
}

/// What the search holds of a request, and of the nodes that it leads: of each level, the request of
/// least index leads a node.
struct PrefixOfRequest {
  std::int32_t pages = 0;  ///< that may be shared; later the place of its first query in the list
  std::int32_t queries = 0;
  std::int32_t depth = 0;         ///< pages of its deepest node; kAlone: none of the last level
  std::int32_t paid = 0;          ///< of them, those that segments have
  std::int32_t cost_of_tile = 0;  ///< of as many keys as a small tile has, for all kv heads, to the
                                  ///< request alone
  std::int32_t leader[kPrefixLevels] = {};
  // Of nodes. Pages [begin, end) are a segment's; end = 0: the node has none.
  std::int32_t is_shared = 0;          ///< the level's node has more requests than its leader
  std::int32_t length = 0;             ///< pages that all of the node share
  std::int32_t node_cost_of_tile = 0;  ///< that its requests pay, each for itself
  std::int32_t node_queries[kPrefixLevels] = {};
  std::int32_t begin[kPrefixLevels] = {};
  std::int32_t end[kPrefixLevels] = {};
};

/// A node of the level that is looked for, in one word: what its requests have in common (their
/// leader on the level above, 16 bits, and their next page, 32), and the one of least index (16).
using PrefixSlot = std::uint64_t;

QUIRE_HOST_DEVICE constexpr std::int32_t num_prefix_slots(std::int32_t num_seqs) {
  return power_of_two_from(2 * num_seqs);
}

struct PrefixTotals {
  std::int64_t gain = 0;
  std::int32_t levels[kPrefixLevels] = {};  // nodes of each that are segments
};

}  // namespace detail

/// The part of the scratch that every search needs; what there is to know of requests comes behind it
/// and is used if some of them share their first page.
QUIRE_HOST_DEVICE constexpr std::size_t prefix_table_bytes(std::int32_t max_num_seqs) {
  return static_cast<std::size_t>(detail::num_prefix_slots(max_num_seqs)) *
             sizeof(detail::PrefixSlot) +
         static_cast<std::size_t>(max_num_seqs + max_num_seqs % 2) * sizeof(std::int32_t);
}
QUIRE_HOST_DEVICE constexpr std::size_t prefix_requests_bytes(std::int32_t max_num_seqs) {
  return sizeof(detail::PrefixTotals) +
         static_cast<std::size_t>(max_num_seqs) * sizeof(detail::PrefixOfRequest);
}
QUIRE_HOST_DEVICE constexpr std::size_t prefix_scratch_bytes(std::int32_t max_num_seqs) {
  return prefix_table_bytes(max_num_seqs) + prefix_requests_bytes(max_num_seqs);
}

/// Whether a request has pages that others may share: few queries, all of which see whole pages.
QUIRE_HOST_DEVICE inline bool may_share_pages(const Policy& policy, const core::ProblemShape& shape,
                                              Lengths lengths) {
  const std::int64_t rows = static_cast<std::int64_t>(lengths.qo_len) * shape.group_size;
  return rows > 0 && rows <= policy.prefixes.most_rows &&
         lengths.kv_len - lengths.qo_len >= shape.page_size;
}

/// All threads of a team run it.
/// @tparam Team  Like `SingleThread`.
template <typename Team>
class PrefixFinder {
 public:
  /// @param table     `prefix_table_bytes`, for the team alone.
  /// @param requests  `prefix_requests_bytes`, likewise.
  QUIRE_HOST_DEVICE PrefixFinder(const Policy& policy, const core::ProblemShape& shape,
                                 const core::BatchArrays& batch, const core::PrefixGroups& groups,
                                 const ScheduleView& schedule, void* table, void* requests,
                                 Team team)
      : policy_(policy),
        shape_(shape),
        batch_(batch),
        groups_(groups),
        schedule_(schedule),
        team_(team),
        num_seqs_(batch.num_seqs),
        num_slots_(detail::num_prefix_slots(num_seqs_)),
        slots_(static_cast<detail::PrefixSlot*>(table)),
        slot_of_(reinterpret_cast<std::int32_t*>(slots_ + num_slots_)),
        totals_(*static_cast<detail::PrefixTotals*>(requests)),
        requests_(reinterpret_cast<detail::PrefixOfRequest*>(&totals_ + 1)) {}

  /// Writes the schedule's segments and lists, if there are prefixes that pay.
  /// @param header  Its counts are written; the team sees them.
  QUIRE_HOST_DEVICE void run(Header& header) {
    if (num_seqs_ < 2 || num_seqs_ > policy_.prefixes.most_seqs) return;
    gather_by_first_page();
    bool any = false;
    for_each(num_seqs_, [&](std::int32_t seq) { any = any || is_led(seq); });
    if (!team_.any(any)) return;
    begin();
    QUIRE_ROLLED
    for (std::int32_t level = 0; level < kPrefixLevels; ++level) {
      if (level > 0) gather_by_next_page(level);
      if (!find_nodes(level)) break;
      measure_nodes(level);
      decide(level);
    }
    team_.sync();
    const std::int64_t least = policy_.prefixes.least_gain * policy_.prefixes.num_kv_heads;
    if (totals_.gain <= 0 || totals_.gain < least) return;
    list_queries(header);
    write_segments(header);
  }

 private:
  static constexpr std::int32_t kAlone = -1;
  static constexpr int kIndexBits = 16;  // of a request
  static constexpr std::uint64_t kIndexMask = (1U << kIndexBits) - 1;
  static constexpr detail::PrefixSlot kEmpty = ~detail::PrefixSlot{0};

  /// Calls `body(i)` for each of `count`, the team's threads in turn.
  template <typename Body>
  QUIRE_HOST_DEVICE void for_each(std::int32_t count, const Body& body) const {
    QUIRE_ROLLED
    for (std::int32_t i = team_.rank(); i < count; i += team_.size()) body(i);
  }

  [[nodiscard]] QUIRE_HOST_DEVICE bool is_in_node(std::int32_t seq) const {
    return requests_[seq].depth != kAlone;
  }

  /// Pages of a request that may be shared: all its queries see them whole.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t shareable_pages(Lengths lengths) const {
    return may_share_pages(policy_, shape_, lengths)
               ? (lengths.kv_len - lengths.qo_len) / shape_.page_size
               : 0;
  }

  QUIRE_HOST_DEVICE void clear_slots() const {
    for_each(num_slots_, [&](std::int32_t slot) { slots_[slot] = kEmpty; });
    team_.sync();
  }

  /// With what a request goes on behind `depth` pages that it shares: a page id, or who leads a group;
  /// negative: with nothing that others have.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t next_of(std::int32_t seq, std::int32_t depth) const {
    if (groups_.num_levels == 0) return page_ids(batch_, seq)[depth];
    QUIRE_ROLLED
    for (std::int32_t level = 0; level < groups_.num_levels; ++level) {
      const std::int32_t leader = group_leader(level, seq);
      if (leader < 0 || group_pages(level, seq) > depth) return leader;
    }
    return kAlone;
  }

  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t group_leader(std::int32_t level,
                                                            std::int32_t seq) const {
    return groups_.leaders[level * groups_.leaders_stride + seq];
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t group_pages(std::int32_t level,
                                                           std::int32_t seq) const {
    return groups_.pages[level * groups_.pages_stride + seq];
  }

  /// Pages, `depth` at least, of the last group that two requests are in together.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t grouped_until(std::int32_t seq, std::int32_t other,
                                                             std::int32_t depth) const {
    QUIRE_ROLLED
    for (std::int32_t level = 0; level < groups_.num_levels; ++level) {
      const std::int32_t leader = group_leader(level, seq);
      if (leader < 0 || leader != group_leader(level, other)) break;
      depth = detail::max_of(depth, group_pages(level, seq));
    }
    return depth;
  }

  /// Gathers the requests of the same first page. All that most batches run: it asks for nothing but
  /// lengths and first pages, and knows requests by a word each.
  QUIRE_HOST_DEVICE void gather_by_first_page() {
    clear_slots();
    for_each(num_seqs_, [&](std::int32_t seq) {
      const bool may_share = shareable_pages(lengths_of(shape_, batch_, seq)) > 0;
      const std::int32_t next = may_share ? next_of(seq, 0) : kAlone;
      slot_of_[seq] = next < 0 ? kAlone : join(0, next, seq);
    });
    team_.sync();
  }

  /// Gathers the requests of a node that go on with the same page, or in the same group.
  QUIRE_HOST_DEVICE void gather_by_next_page(std::int32_t level) {
    clear_slots();
    for_each(num_seqs_, [&](std::int32_t seq) {
      const detail::PrefixOfRequest& request = requests_[seq];
      const bool goes_on = is_in_node(seq) && request.pages > request.depth;
      const std::int32_t next = goes_on ? next_of(seq, request.depth) : kAlone;
      slot_of_[seq] = next < 0 ? kAlone : join(request.leader[level - 1], next, seq);
    });
    team_.sync();
  }

  /// @return The slot of those who have `leader` in common and go on with `next`, `seq` among them.
  QUIRE_HOST_DEVICE std::int32_t join(std::int32_t leader, std::int32_t next,
                                      std::int32_t seq) const {
    const std::uint64_t key = static_cast<std::uint64_t>(leader) << 48U |
                              static_cast<std::uint64_t>(static_cast<std::uint32_t>(next)) << 16U;
    const std::uint64_t word = key | static_cast<std::uint64_t>(seq);
    std::uint64_t hash = (key >> 16U) * 0x9e37'79b9'7f4a'7c15U;
    hash ^= hash >> 32U;
    auto slot = static_cast<std::int32_t>(hash & static_cast<std::uint64_t>(num_slots_ - 1));
    QUIRE_ROLLED
    while (true) {
      const std::uint64_t before = team_.exchange_if(slots_[slot], kEmpty, word);
      if (before == kEmpty) return slot;
      if (((before ^ word) >> 16U) == 0) break;
      slot = (slot + 1) & (num_slots_ - 1);
    }
    team_.lower_to(slots_[slot], word);
    return slot;
  }

  /// The request of least index among those that a request was gathered with.
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t leader_of(std::int32_t seq) const {
    return slot_of_[seq] == kAlone ? seq
                                   : static_cast<std::int32_t>(slots_[slot_of_[seq]] & kIndexMask);
  }
  [[nodiscard]] QUIRE_HOST_DEVICE bool is_led(std::int32_t seq) const {
    return leader_of(seq) != seq;
  }

  QUIRE_HOST_DEVICE void begin() {
    if (team_.rank() == 0) totals_ = {};
    for_each(num_seqs_, [&](std::int32_t seq) {
      const Lengths lengths = lengths_of(shape_, batch_, seq);
      detail::PrefixOfRequest request;
      request.queries = lengths.qo_len;
      request.pages = shareable_pages(lengths);
      const Segment whole = whole_segment(shape_, batch_, seq);
      const TilePolicy& tiles = tiles_for(lengths);
      const SegmentUnits units = units_of(tiles, shape_, lengths);
      if (units.q_tiles > 0) {
        const detail::UnitLine line(tiles, shape_, whole, units);
        request.cost_of_tile = static_cast<std::int32_t>(
            units.q_tiles * line.cost_of_kv_tile(0) * turns_of(tiles, units) *
            policy_.lines[kSmallUnits].keys_per_tile / tiles.keys_per_tile);
      }
      requests_[seq] = request;
    });
    team_.sync();
  }

  /// Nodes are made of those who were gathered. @return False if there are none.
  QUIRE_HOST_DEVICE bool find_nodes(std::int32_t level) {
    for_each(num_seqs_, [&](std::int32_t seq) {
      detail::PrefixOfRequest& request = requests_[seq];
      request.leader[level] = leader_of(seq);
      request.is_shared = 0;
      request.length = INT32_MAX;
      request.node_cost_of_tile = 0;
    });
    team_.sync();
    for_each(num_seqs_, [&](std::int32_t seq) {
      if (is_led(seq)) team_.add(requests_[leader_of(seq)].is_shared, 1);
    });
    team_.sync();
    bool any = false;
    for_each(num_seqs_, [&](std::int32_t seq) {
      const bool is_alone = !is_led(seq) && requests_[seq].is_shared == 0;
      if (is_alone) requests_[seq].depth = kAlone;
      any = any || !is_alone;
    });
    return team_.any(any);
  }

  /// How many pages the requests of a node share, and what they pay for a tile of keys.
  QUIRE_HOST_DEVICE void measure_nodes(std::int32_t level) {
    const bool is_named = groups_.num_levels > 0;  // else a warp compares tables
    const std::int32_t step = is_named ? team_.size() : team_.num_warps();
    QUIRE_ROLLED
    for (std::int32_t seq = is_named ? team_.rank() : team_.warp(); seq < num_seqs_; seq += step) {
      if (!is_in_node(seq)) continue;
      const detail::PrefixOfRequest& request = requests_[seq];
      const std::int32_t leader = request.leader[level];
      detail::PrefixOfRequest& node = requests_[leader];
      std::int32_t pages = request.pages;
      if (leader != seq) {
        pages = detail::min_of(pages, node.pages);
        pages = is_named ? detail::min_of(pages, grouped_until(seq, leader, request.depth))
                         : team_.matching_until(page_ids(batch_, seq), page_ids(batch_, leader),
                                                request.depth + 1, pages);
      }
      if (!is_named && !team_.is_first_of_warp()) continue;
      team_.lower_to(node.length, pages);
      team_.add(node.node_queries[level], request.queries);
      team_.add(node.node_cost_of_tile, request.cost_of_tile);
    }
    team_.sync();
  }

  /// Which nodes become segments.
  QUIRE_HOST_DEVICE void decide(std::int32_t level) {
    for_each(num_seqs_, [&](std::int32_t seq) {
      detail::PrefixOfRequest& node = requests_[seq];
      if (!is_in_node(seq) || node.leader[level] != seq) return;
      const std::int64_t gain = gain_of(node, node.node_queries[level]);
      if (gain <= 0) return;
      node.begin[level] = node.paid;
      node.end[level] = node.length;
      team_.add(totals_.gain, gain);
      team_.add(totals_.levels[level], 1);
    });
    team_.sync();
    for_each(num_seqs_, [&](std::int32_t seq) {
      if (!is_in_node(seq)) return;
      detail::PrefixOfRequest& request = requests_[seq];
      const detail::PrefixOfRequest& node = requests_[request.leader[level]];
      request.depth = node.length;
      if (node.end[level] > 0) request.paid = node.end[level];
    });
    team_.sync();
  }

  /// How often the cost of a head unit is to be paid until all kv heads are done.
  [[nodiscard]] static QUIRE_HOST_DEVICE std::int32_t turns_of(const TilePolicy& tiles,
                                                               const SegmentUnits& units) {
    return units.head_units * tiles.heads_abreast;
  }

  /// What the batch's cost falls by, over all kv heads, if the node becomes a segment.
  QUIRE_HOST_DEVICE std::int64_t gain_of(const detail::PrefixOfRequest& node,
                                         std::int32_t queries) const {
    const Segment segment = prefix_segment(0, node.paid, node.length, queries);
    const TilePolicy& tiles = tiles_for(segment.lengths);
    const SegmentUnits units = units_of(tiles, shape_, segment.lengths);
    const detail::UnitLine line(tiles, shape_, segment, units);
    const TilePolicy& own_tiles = policy_.lines[kSmallUnits];
    const std::int64_t own_kv_tiles =  // that its requests are without then
        segment.key_end / own_tiles.keys_per_tile - segment.key_begin / own_tiles.keys_per_tile;
    const PrefixPolicy& prefixes = policy_.prefixes;
    const std::int64_t of_queries =
        std::int64_t{queries} * prefixes.cost_of_queries / prefixes.queries_per_cost;
    return node.node_cost_of_tile * own_kv_tiles -
           (line.cost() + own_tiles.cost_of_unit) * turns_of(tiles, units) -
           of_queries * prefixes.num_kv_heads;
  }

  /// Of the line on which a segment's units are.
  [[nodiscard]] QUIRE_HOST_DEVICE const TilePolicy& tiles_for(Lengths lengths) const {
    return policy_.lines[line_of(policy_, shape_, lengths)];
  }

  /// Pages [begin, end) of a request's table.
  QUIRE_HOST_DEVICE Segment prefix_segment(std::int32_t seq, std::int32_t begin, std::int32_t end,
                                           std::int32_t queries) const {
    Segment segment;
    segment.seq = seq;
    segment.key_begin = begin * shape_.page_size;
    segment.key_end = end * shape_.page_size;
    segment.lengths = {queries, segment.key_end + queries};
    return segment;
  }

  /// Order of the list: members of every node behind one another, its leader first.
  [[nodiscard]] QUIRE_HOST_DEVICE std::uint64_t order_of(std::int32_t seq) const {
    const detail::PrefixOfRequest& request = requests_[seq];
    if (request.paid == 0) return ~std::uint64_t{0};
    std::uint64_t order = 0;
    for (const std::int32_t leader : request.leader) {
      order = order << kIndexBits | static_cast<std::uint64_t>(leader);
    }
    return order << kIndexBits | static_cast<std::uint64_t>(seq);
  }

  /// Puts the queries of all requests that have segments above them into one order.
  QUIRE_HOST_DEVICE void list_queries(Header& header) {
    std::uint64_t* const order = slots_;
    const std::int32_t count = detail::power_of_two_from(num_seqs_);
    for_each(count,
             [&](std::int32_t i) { order[i] = i < num_seqs_ ? order_of(i) : ~std::uint64_t{0}; });
    sort(order, count);

    const std::uint32_t levels = levels_with_segments();
    const std::int32_t most = policy_.prefixes.max_states / (num_bits(levels) + 1);
    const std::int32_t share = (num_seqs_ + team_.size() - 1) / team_.size();
    const std::int32_t first = detail::min_of(team_.rank() * share, num_seqs_);
    const std::int32_t last = detail::min_of(first + share, num_seqs_);
    std::int64_t own = 0;
    QUIRE_ROLLED
    for (std::int32_t i = first; i < last; ++i) own += queries_at(order[i]);
    std::int64_t total = 0;
    std::int64_t at = team_.sum_before(own, total);
    std::int64_t listed = 0;
    QUIRE_ROLLED
    for (std::int32_t i = first; i < last; ++i) {
      const std::int32_t queries = queries_at(order[i]);
      if (queries == 0) continue;
      const std::int32_t seq = seq_of(order[i]);
      if (at + queries <= most) {
        requests_[seq].pages = static_cast<std::int32_t>(at);
        write_listed(seq);
        listed += queries;
      } else {
        requests_[seq].paid = 0;  // one too many: all of its keys stay its own
      }
      at += queries;
    }
    std::int64_t num_listed = 0;
    (void)team_.sum_before(listed, num_listed);
    if (team_.rank() == 0) {
      header.num_listed = static_cast<std::int32_t>(num_listed);
      header.levels = levels;
    }
    team_.sync();
    for_each(header.num_listed * policy_.prefixes.num_kv_heads,
             [&](std::int32_t i) { schedule_.listed_arrivals[i] = 0; });
  }

  QUIRE_HOST_DEVICE void sort(std::uint64_t* keys, std::int32_t count) const {
    team_.sync();
    QUIRE_ROLLED
    for (std::int32_t run = 2; run <= count; run *= 2) {
      QUIRE_ROLLED
      for (std::int32_t step = run / 2; step > 0; step /= 2) {
        for_each(count / 2, [&](std::int32_t i) {
          const std::int32_t low = 2 * i - (i & (step - 1));
          const std::uint64_t a = keys[low];
          const std::uint64_t b = keys[low + step];
          if ((a > b) == ((low & run) == 0)) {
            keys[low] = b;
            keys[low + step] = a;
          }
        });
        team_.sync();
      }
    }
  }

  [[nodiscard]] static QUIRE_HOST_DEVICE std::int32_t seq_of(std::uint64_t order) {
    return static_cast<std::int32_t>(order & kIndexMask);
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t queries_at(std::uint64_t order) const {
    return order == ~std::uint64_t{0} ? 0 : requests_[seq_of(order)].queries;
  }
  [[nodiscard]] static QUIRE_HOST_DEVICE std::int32_t num_bits(std::uint32_t bits) {
    std::int32_t count = 0;
    for (; bits != 0; bits &= bits - 1) ++count;
    return count;
  }

  [[nodiscard]] QUIRE_HOST_DEVICE std::uint32_t levels_with_segments() const {
    std::uint32_t levels = 0;
    for (std::int32_t level = 0; level < kPrefixLevels; ++level) {
      if (totals_.levels[level] > 0) levels |= 1U << static_cast<unsigned>(level);
    }
    return levels;
  }

  QUIRE_HOST_DEVICE void write_listed(std::int32_t seq) const {
    const detail::PrefixOfRequest& request = requests_[seq];
    ListedQuery query{batch_.qo_indptr[seq], 1U << static_cast<unsigned>(kOwnLevel)};
    for (std::int32_t level = 0; level < kPrefixLevels; ++level) {
      if (requests_[request.leader[level]].end[level] > 0) {
        query.levels |= 1U << static_cast<unsigned>(level);
      }
    }
    for (std::int32_t i = 0; i < request.queries; ++i, ++query.token) {
      schedule_.listed[request.pages + i] = query;
    }
  }

  /// Prefixes by their leaders, upper levels first; then the requests.
  QUIRE_HOST_DEVICE void write_segments(Header& header) {
    const std::int32_t share = (num_seqs_ + team_.size() - 1) / team_.size();
    const std::int32_t first = detail::min_of(team_.rank() * share, num_seqs_);
    const std::int32_t last = detail::min_of(first + share, num_seqs_);
    std::int64_t own = 0;
    QUIRE_ROLLED
    for (std::int32_t seq = first; seq < last; ++seq) own += segments_led_by(seq);
    std::int64_t total = 0;
    auto at = static_cast<std::int32_t>(team_.sum_before(own, total));
    const auto num_prefixes = static_cast<std::int32_t>(total);
    QUIRE_ROLLED
    for (std::int32_t seq = first; seq < last; ++seq) {
      QUIRE_ROLLED
      for (std::int32_t level = 0; level < kPrefixLevels; ++level) {
        if (leads_segment(seq, level)) write_prefix(header, at++, seq, level);
      }
      write_request(header, num_prefixes + seq, seq);
    }
    if (team_.rank() == 0) {
      header.overview.num_prefixes = num_prefixes;
      header.num_segments = num_prefixes + num_seqs_;
    }
    team_.sync();
  }

  [[nodiscard]] QUIRE_HOST_DEVICE bool leads_segment(std::int32_t seq, std::int32_t level) const {
    return requests_[seq].end[level] > 0 && requests_[seq].paid > 0;
  }
  [[nodiscard]] QUIRE_HOST_DEVICE std::int32_t segments_led_by(std::int32_t seq) const {
    std::int32_t count = 0;
    for (std::int32_t level = 0; level < kPrefixLevels; ++level) {
      count += static_cast<std::int32_t>(leads_segment(seq, level));
    }
    return count;
  }

  /// Results of a level lie behind those of the levels above.
  [[nodiscard]] static QUIRE_HOST_DEVICE std::int32_t state_of(const Header& header,
                                                               std::int32_t level,
                                                               std::int32_t listed) {
    const std::uint32_t above = header.levels & ((1U << static_cast<unsigned>(level)) - 1);
    return num_bits(above) * header.num_listed + listed;
  }

  QUIRE_HOST_DEVICE void write_prefix(const Header& header, std::int32_t index, std::int32_t seq,
                                      std::int32_t level) const {
    const detail::PrefixOfRequest& node = requests_[seq];
    const std::int32_t queries =
        detail::min_of(node.node_queries[level], header.num_listed - node.pages);
    schedule_.segments[index] = {prefix_segment(seq, node.begin[level], node.end[level], queries),
                                 {node.pages, state_of(header, level, node.pages), level}};
  }

  QUIRE_HOST_DEVICE void write_request(const Header& header, std::int32_t index,
                                       std::int32_t seq) const {
    const detail::PrefixOfRequest& request = requests_[seq];
    StoredSegment stored{whole_segment(shape_, batch_, seq), {batch_.qo_indptr[seq]}};
    if (request.paid > 0) {
      stored.segment.key_begin = request.paid * shape_.page_size;
      stored.queries = {request.pages, state_of(header, kOwnLevel, request.pages), kOwnLevel};
    }
    schedule_.segments[index] = stored;
  }

  const Policy& policy_;
  const core::ProblemShape& shape_;
  const core::BatchArrays& batch_;
  const core::PrefixGroups& groups_;
  const ScheduleView& schedule_;
  const Team team_;
  const std::int32_t num_seqs_;
  const std::int32_t num_slots_;
  detail::PrefixSlot* const slots_;
  std::int32_t* const slot_of_;  // [num_seqs]: where a request was gathered, or kAlone
  detail::PrefixTotals& totals_;
  detail::PrefixOfRequest* const requests_;
};

inline void find_prefixes(const Policy& policy, const core::ProblemShape& shape,
                          const core::BatchArrays& batch, const core::PrefixGroups& groups,
                          ScheduleView schedule) {
  auto* const scratch = static_cast<std::byte*>(schedule.prefix_scratch);
  PrefixFinder(policy, shape, batch, groups, schedule, scratch,
               scratch + prefix_table_bytes(batch.num_seqs), SingleThread{})
      .run(*schedule.header);
}

}  // namespace quire::schedule
