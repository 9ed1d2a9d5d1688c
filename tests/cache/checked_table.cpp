// SPDX-License-Identifier: Apache-2.0
#include "cache/checked_table.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "cache/test_access.hpp"

namespace quire::test {

using Kind = Op::Kind;

namespace {

std::size_t index_of(std::int32_t value) { return static_cast<std::size_t>(value); }

std::int32_t ceil_div(std::int32_t value, std::int32_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace

std::string describe(const Op& op) {
  constexpr std::array kNames = {"create", "fork",    "append", "truncate", "accept_tree",
                                 "slide",  "destroy", "retain", "release"};
  return fmt::format("{} seq {}.{} n {} path {:#x}", kNames[static_cast<std::size_t>(op.kind)],
                     op.seq.slot, op.seq.generation, op.n, op.path);
}

std::vector<std::int32_t> Op::kept() const {
  std::vector<std::int32_t> tokens;
  for (std::int32_t bit = 0; bit < 32; ++bit) {
    if ((path >> bit & 1U) != 0) tokens.push_back(bit);
  }
  return tokens;
}

bool CheckedTable::Snapshot::same_table(const Snapshot& other) const {
  return pages == other.pages && free_pages == other.free_pages && sequences == other.sequences &&
         rows == other.rows && first_free_slot == other.first_free_slot &&
         num_live == other.num_live;
}

CheckedTable::CheckedTable(const PagePoolSpec& pool_spec, const PageTableSpec& table_spec)
    : pool_(pool_spec),
      table_(pool_, table_spec),
      cache_(index_of(pool_spec.num_pages) * index_of(pool_spec.page_size), 0),
      pins_(index_of(pool_spec.num_pages), 0) {}

std::int32_t CheckedTable::pins(PageId page) const { return pins_[index_of(page)]; }

CheckedTable::Live* CheckedTable::find(SeqId seq) {
  const auto found = std::ranges::find(live_, seq, &Live::seq);
  return found == live_.end() ? nullptr : &*found;
}

// References counted from the tables as they can be seen from outside.
std::vector<std::int32_t> CheckedTable::naive_refs() const {
  std::vector<std::int32_t> refs = pins_;
  for (const Live& live : live_) {
    for (const PageId page : table_.pages(live.seq)) {
      if (page != kNoPage) ++refs[index_of(page)];
    }
  }
  return refs;
}

std::int32_t CheckedTable::naive_free() const {
  return static_cast<std::int32_t>(std::ranges::count(naive_refs(), 0));
}

std::int32_t CheckedTable::naive_unseen(std::int32_t position) const {
  if (table_.spec().window_left < 0) return 0;
  return std::max(0, position - table_.spec().window_left) / pool_.spec().page_size;
}

std::int32_t CheckedTable::naive_need(const Live& live, std::int32_t n) const {
  const std::int32_t page_size = pool_.spec().page_size;
  const auto length = static_cast<std::int32_t>(live.stamps.size());
  const std::int32_t added = ceil_div(length + n, page_size) - ceil_div(length, page_size);
  if (n == 0 || length % page_size == 0) return added;
  const PageId tail = table_.pages(live.seq).back();
  return added + (naive_refs()[index_of(tail)] > 1 ? 1 : 0);
}

ErrorCode CheckedTable::expected_of_path(const Live& live, const Op& op) const {
  const auto length = static_cast<std::int32_t>(live.stamps.size());
  const std::vector<std::int32_t> kept = op.kept();
  if (op.n > length || (!kept.empty() && kept.back() >= length - op.n)) {
    return ErrorCode::kInvalidArgument;
  }
  for (std::int32_t i = 0; i < std::ssize(kept); ++i) {
    if (kept[index_of(i)] == i) continue;  // stays where it is
    const PageId page = table_.pages(live.seq)[index_of((op.n + i) / pool_.spec().page_size)];
    if (naive_refs()[index_of(page)] > 1) return ErrorCode::kInvalidArgument;
  }
  return ErrorCode::kOk;
}

ErrorCode CheckedTable::expected(const Op& op) {
  const bool full = std::ssize(live_) == table_.spec().max_seqs;
  if (op.kind == Kind::kCreate) return full ? ErrorCode::kQueueFull : ErrorCode::kOk;
  if (op.kind == Kind::kRetain || op.kind == Kind::kRelease) {
    const bool known = op.n >= 0 && op.n < pool_.spec().num_pages;
    const auto& counts = op.kind == Kind::kRetain ? naive_refs() : pins_;
    return known && counts[index_of(op.n)] > 0 ? ErrorCode::kOk : ErrorCode::kBadHandle;
  }
  const Live* const live = find(op.seq);
  if (live == nullptr) return ErrorCode::kBadHandle;
  const auto length = static_cast<std::int32_t>(live->stamps.size());
  if (op.kind == Kind::kDestroy) return ErrorCode::kOk;
  if (op.n < 0) return ErrorCode::kInvalidArgument;
  if (op.kind == Kind::kSlide) {
    return op.n <= length ? ErrorCode::kOk : ErrorCode::kInvalidArgument;
  }
  if (op.kind != Kind::kAppend && (op.n > length || naive_unseen(op.n) < live->holes)) {
    return ErrorCode::kInvalidArgument;
  }
  if (op.kind == Kind::kAcceptTree) return expected_of_path(*live, op);
  if (op.kind != Kind::kAppend) {
    return op.kind == Kind::kFork && full ? ErrorCode::kQueueFull : ErrorCode::kOk;
  }
  if (op.n > table_.spec().max_tokens_per_seq - length) return ErrorCode::kTooLong;
  return naive_need(*live, op.n) > naive_free() ? ErrorCode::kOutOfPages : ErrorCode::kOk;
}

Status CheckedTable::call(const Op& op, std::vector<CopyOp>& copies, SeqId& made) {
  const auto keep = [&made](const Result<SeqId>& result) {
    if (result.ok()) made = *result;
    return result.status();
  };
  switch (op.kind) {
    case Kind::kCreate:
      return keep(table_.create());
    case Kind::kFork:
      return keep(table_.fork(op.seq, op.n));
    case Kind::kAppend:
      return table_.append(op.seq, op.n, copies);
    case Kind::kTruncate:
      return table_.truncate(op.seq, op.n);
    case Kind::kAcceptTree:
      return table_.accept_tree(op.seq, op.n, op.kept(), copies);
    case Kind::kSlide:
      return table_.slide(op.seq, op.n);
    case Kind::kDestroy:
      return table_.destroy(op.seq);
    case Kind::kRetain:
      return pool_.retain(op.n);
    case Kind::kRelease:
      return pool_.release(op.n);
  }
  return {};
}

// Does to the oracle what the call has done to the table.
void CheckedTable::follow(const Op& op, SeqId made) {
  Live* const live = find(op.seq);
  switch (op.kind) {
    case Kind::kCreate:
      live_.push_back({made, {}});
      break;
    case Kind::kFork:
      live_.push_back({made, {live->stamps.begin(), live->stamps.begin() + op.n}, live->holes});
      break;
    case Kind::kAppend:
      write(*live, op.n);
      break;
    case Kind::kTruncate:
      live->stamps.resize(index_of(op.n));
      break;
    case Kind::kAcceptTree: {
      const std::vector<std::int64_t> drafts(live->stamps.begin() + op.n, live->stamps.end());
      live->stamps.resize(index_of(op.n));
      for (const std::int32_t token : op.kept()) live->stamps.push_back(drafts[index_of(token)]);
      break;
    }
    case Kind::kSlide:
      live->holes = std::max(live->holes, naive_unseen(op.n));
      break;
    case Kind::kDestroy:
      dead_.push_back(op.seq);
      live_.erase(live_.begin() + (live - live_.data()));
      break;
    case Kind::kRetain:
      ++pins_[index_of(op.n)];
      break;
    case Kind::kRelease:
      --pins_[index_of(op.n)];
      break;
  }
}

void CheckedTable::write(Live& live, std::int32_t n) {
  for (std::int32_t i = 0; i < n; ++i) {
    const std::int64_t slot = table_.slot(live.seq, static_cast<std::int32_t>(live.stamps.size()));
    ASSERT_GE(slot, 0);
    ASSERT_LT(slot, std::ssize(cache_));
    live.stamps.push_back(next_stamp_);
    cache_[static_cast<std::size_t>(slot)] = next_stamp_++;
  }
}

void CheckedTable::execute(const std::vector<CopyOp>& copies) {
  const CopyTensors cache{.dst = {cache_.data(),
                                  DType::kInt64,
                                  {pool_.spec().num_pages, pool_.spec().page_size, 1, 1}}};
  const Status status = execute_copies(Device::cpu(), KvLayout::kNHD, copies, {&cache, 1});
  ASSERT_TRUE(status.ok()) << status.message();
}

ErrorCode CheckedTable::apply(const Op& op) {
  SCOPED_TRACE(describe(op));
  const ErrorCode wanted = expected(op);
  Snapshot before;
  if (wanted != ErrorCode::kOk) before = snapshot();
  std::vector<CopyOp> copies;
  SeqId made;
  const Status status = call(op, copies, made);
  EXPECT_EQ(status.code(), wanted) << status.message();
  if (status.ok()) {
    execute(copies);
    follow(op, made);
  } else {
    EXPECT_TRUE(copies.empty());
    EXPECT_NE(wanted, ErrorCode::kOk);
    EXPECT_TRUE(before.same_table(snapshot())) << "a refused call has changed something";
  }
  compare();
  return status.code();
}

void CheckedTable::append_together(const std::vector<Op>& appends, std::mt19937& random) {
  std::vector<CopyOp> copies;
  std::vector<Op> done;
  for (const Op& op : appends) {
    const std::int32_t needed = naive_need(*find(op.seq), op.n);
    const std::int32_t free = pool_.num_free();
    if (!table_.append(op.seq, op.n, copies).ok()) continue;
    EXPECT_EQ(free - pool_.num_free(), needed);
    done.push_back(op);
  }
  std::ranges::shuffle(copies, random);
  execute(copies);
  for (const Op& op : done) write(*find(op.seq), op.n);
  compare();
}

// Everything that can be asked, against the oracle.
void CheckedTable::compare() {
  const std::vector<std::int32_t> refs = naive_refs();
  const Status table_check = table_.check();
  EXPECT_TRUE(table_check.ok()) << table_check.message();
  EXPECT_EQ(table_.num_seqs(), std::ssize(live_));
  EXPECT_EQ(pool_.num_free(), std::ranges::count(refs, 0));
  for (PageId page = 0; page < pool_.spec().num_pages; ++page) {
    EXPECT_EQ(pool_.ref_count(page), refs[index_of(page)]);
  }
  for (const Live& live : live_) {
    const auto length = static_cast<std::int32_t>(live.stamps.size());
    ASSERT_EQ(table_.length(live.seq), length);
    ASSERT_EQ(std::ssize(table_.pages(live.seq)), ceil_div(length, pool_.spec().page_size));
    ASSERT_EQ(table_.num_holes(live.seq), live.holes);
    for (std::int32_t position = 0; position < length; ++position) {
      const std::int64_t slot = table_.slot(live.seq, position);
      const std::int32_t index = position / pool_.spec().page_size;
      ASSERT_EQ(slot == -1, index < live.holes);
      ASSERT_EQ(table_.pages(live.seq)[index_of(index)] == kNoPage, index < live.holes);
      if (slot == -1) continue;
      ASSERT_EQ(cache_[static_cast<std::size_t>(slot)], live.stamps[index_of(position)])
          << "token " << position << " of the sequence in slot " << live.seq.slot;
    }
    compare_questions(live, refs);
  }
  const auto recent = std::min<std::ptrdiff_t>(std::ssize(dead_), 20);
  for (auto id = dead_.end() - recent; id != dead_.end(); ++id) EXPECT_FALSE(table_.contains(*id));
}

// pages_needed, room and reclaimable_pages by their definitions.
void CheckedTable::compare_questions(const Live& live, const std::vector<std::int32_t>& refs) {
  const std::int32_t max_n =
      table_.spec().max_tokens_per_seq - static_cast<std::int32_t>(live.stamps.size());
  const std::int32_t free = pool_.num_free();
  std::int32_t room = 0;
  for (std::int32_t n = 1; n <= max_n && naive_need(live, n) <= free; ++n) {
    EXPECT_EQ(table_.pages_needed(live.seq, n), naive_need(live, n));
    room = n;
  }
  EXPECT_EQ(table_.room(live.seq, free), room);
  EXPECT_EQ(table_.pages_needed(live.seq, max_n + 1), -1);
  EXPECT_EQ(table_.slot(live.seq, static_cast<std::int32_t>(live.stamps.size())), -1);
  EXPECT_EQ(table_.reclaimable_pages(live.seq),
            std::ranges::count_if(table_.pages(live.seq), [&](PageId page) {
              return page != kNoPage && refs[index_of(page)] == 1;
            }));
}

CheckedTable::Snapshot CheckedTable::snapshot() {
  const internal::PagePoolState& pool = internal::TestAccess::state(pool_);
  const internal::PageTableState& table = internal::TestAccess::state(table_);
  Snapshot result{pool.pages,     {},     table.sequences, {},    table.first_free_slot,
                  table.num_live, cache_, live_,           pins_, dead_};
  const std::span free_pages = std::span(pool.free_pages).first(index_of(pool.num_free));
  result.free_pages.assign(free_pages.begin(), free_pages.end());
  for (std::int32_t slot = 0; slot < table.spec.max_seqs; ++slot) {
    const std::span<const PageId> row = table.pages(slot);
    result.rows.emplace_back(row.begin(), row.end());
  }
  return result;
}

void CheckedTable::restore(const Snapshot& snapshot) {
  internal::PagePoolState& pool = internal::TestAccess::state(pool_);
  internal::PageTableState& table = internal::TestAccess::state(table_);
  pool.pages = snapshot.pages;
  std::ranges::copy(snapshot.free_pages, pool.free_pages.begin());
  pool.num_free = static_cast<std::int32_t>(snapshot.free_pages.size());
  table.sequences = snapshot.sequences;
  table.first_free_slot = snapshot.first_free_slot;
  table.num_live = snapshot.num_live;
  for (std::int32_t slot = 0; slot < table.spec.max_seqs; ++slot) {
    std::ranges::copy(snapshot.rows[index_of(slot)], table.row(slot));
  }
  cache_ = snapshot.cache;
  live_ = snapshot.live;
  pins_ = snapshot.pins;
  dead_ = snapshot.dead;
}

}  // namespace quire::test
