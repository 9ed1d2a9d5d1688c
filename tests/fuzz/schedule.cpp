// SPDX-License-Identifier: Apache-2.0
// The schedule: whatever the lengths and the policy, every key that a query may see belongs to
// exactly one piece of work for each of its heads, and the pieces of a unit are in order.
#include "schedule/schedule.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <tuple>
#include <vector>

#include "fuzz/bytes.hpp"

namespace quire::fuzz {
namespace {

using schedule::Lengths;
using schedule::WorkItem;

/// A unit of work, by what it computes.
using Unit = std::tuple<std::int32_t, std::int32_t, std::int32_t>;  // seq, kv_head_begin, q_begin

class Problem {
 public:
  Problem(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {
    shape_.num_kv_heads = bytes_.between(1, 5);
    shape_.group_size = bytes_.between(1, 9);
    shape_.num_qo_heads = shape_.num_kv_heads * shape_.group_size;
    shape_.page_size = 16;
    shape_.mask = static_cast<Mask>(bytes_.between(0, 3));
    shape_.window_left = bytes_.once_in(2) ? bytes_.take<std::uint16_t>() : -1;
    schedule::TilePolicy& small = policy_.lines[schedule::kSmallUnits];
    draw_policy(small);
    small.all_heads_rows = bytes_.between(0, 100);
    if (bytes_.once_in(2)) {
      schedule::TilePolicy& large = policy_.lines[schedule::kLargeUnits];
      draw_policy(large);
      large.over_rows = small.up_to_rows = bytes_.take<std::uint16_t>();
    }
    draw_lengths();
  }

  void run() {
    std::vector<std::uint64_t> workspace(
        schedule::schedule_bytes(policy_, batch_.num_seqs) / sizeof(std::uint64_t) + 1,
        ~std::uint64_t{0});
    const schedule::ScheduleView view =
        schedule::view_of(policy_, batch_.num_seqs, workspace.data());
    schedule::build(policy_, shape_, batch_, view);
    std::map<Unit, std::vector<WorkItem>> units;
    for (int line = 0; line < schedule::kLines; ++line) {
      for (std::int32_t range = 0; range < policy_.lines[line].num_ranges; ++range) {
        schedule::WorkCursor cursor(policy_, shape_, batch_, view, line, range);
        for (WorkItem item; cursor.next(item);) {
          require(item.seq >= 0 && item.seq < batch_.num_seqs);
          units[{item.seq, item.kv_head_begin, item.q_begin}].push_back(item);
        }
      }
    }
    std::vector<std::int64_t> rows(seqs_.size());  // query × kv head, once each
    for (const auto& [unit, items] : units)
      rows[static_cast<std::size_t>(items[0].seq)] += expect(items);
    for (std::size_t seq = 0; seq < seqs_.size(); ++seq) {
      require(rows[seq] == std::int64_t{seqs_[seq].qo_len} * shape_.num_kv_heads);
    }
  }

 private:
  void draw_policy(schedule::TilePolicy& policy) {
    policy.keys_per_tile = 1 << bytes_.between(0, 8);
    policy.tile_rows = bytes_.between(1, 255);
    policy.num_ranges = bytes_.between(1, 64);
    policy.heads_abreast = std::gcd(shape_.num_kv_heads, bytes_.between(1, 4));
    policy.min_split_tiles = bytes_.between(1, 9);
    policy.cost_of_unit = bytes_.between(1, 60);
    policy.cost_of_tile = bytes_.between(0, 60);
    policy.cost_of_row = bytes_.between(1, 4);
    policy.min_range_cost = bytes_.take<std::uint16_t>() + 1;
  }

  void draw_lengths() {
    const std::int32_t count = bytes_.between(0, 8);
    qo_indptr_.push_back(0);
    for (std::int32_t i = 0; i < count; ++i) {
      const Lengths seq{bytes_.once_in(2) ? bytes_.between(0, 255) : 1,
                        bytes_.take<std::uint16_t>() % 8192};
      seqs_.push_back(seq);
      qo_indptr_.push_back(qo_indptr_.back() + seq.qo_len);
      kv_len_.push_back(seq.kv_len);
    }
    batch_.num_seqs = count;
    batch_.qo_indptr = qo_indptr_.data();
    batch_.kv_len = kv_len_.data();
  }

  /// The pieces of one unit cover its keys once. @return Rows of the unit, per kv head.
  std::int64_t expect(const std::vector<WorkItem>& items) const {
    const WorkItem& first = items.front();
    const Lengths lengths = seqs_[static_cast<std::size_t>(first.seq)];
    require(first.kv_head_begin >= 0 && first.kv_head_begin < first.kv_head_end);
    require(first.kv_head_end <= shape_.num_kv_heads);
    require(first.q_begin >= 0 && first.q_begin < first.q_end && first.q_end <= lengths.qo_len);
    require(static_cast<std::size_t>(first.num_pieces) == items.size());
    std::vector<const WorkItem*> pieces(items.size(), nullptr);
    for (const WorkItem& item : items) {
      require(item.piece >= 0 && item.piece < first.num_pieces);
      require(item.num_pieces == first.num_pieces && item.first_range == first.first_range);
      require(item.kv_head_end == first.kv_head_end && item.q_end == first.q_end);
      pieces[static_cast<std::size_t>(item.piece)] = &item;
    }
    const schedule::KeyRange keys =
        schedule::visible_keys(shape_, lengths, first.q_begin, first.q_end);
    if (keys.begin >= keys.end) {
      require(items.size() == 1 && first.kv_begin >= first.kv_end);
    } else {
      std::int32_t at = pieces.front()->kv_begin;
      require(at <= keys.begin && at >= 0);
      for (const WorkItem* piece : pieces) {
        require(piece != nullptr && piece->kv_begin == at && piece->kv_end > at);
        at = piece->kv_end;
      }
      require(at == keys.end);
    }
    return std::int64_t{first.q_end - first.q_begin} * (first.kv_head_end - first.kv_head_begin);
  }

  Bytes bytes_;
  core::ProblemShape shape_;
  schedule::Policy policy_;
  core::BatchArrays batch_;
  std::vector<Lengths> seqs_;
  std::vector<std::int32_t> qo_indptr_;
  std::vector<std::int32_t> kv_len_;
};

}  // namespace
}  // namespace quire::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  quire::fuzz::Problem(data, size).run();
  return 0;
}
