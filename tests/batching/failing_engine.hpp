// SPDX-License-Identifier: Apache-2.0
/// @file
/// An engine's host side whose every call is made with each of its allocations failing once. A call
/// that fails must say so and change nothing; made again, it goes on.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "batching/batcher_state.hpp"
#include "cache/failing_new.hpp"
#include "cache/test_access.hpp"
#include "quire/batch_builder.hpp"
#include "quire/batcher.hpp"
#include "quire/recorder.hpp"

namespace quire::test {
using Numbers = std::vector<std::int64_t>;

inline constexpr std::int32_t kPages = 24;
inline constexpr std::int32_t kHostPages = 16;
inline constexpr std::int32_t kPageSize = 4;
inline constexpr std::int32_t kMaxTokens = 40;

/// What calls of one name did.
struct Tally {
  int calls = 0;
  int failures = 0;  // for lack of memory
  int refusals = 0;  // calls that ended with another error, and need not change anything either
};

/// A pool with all that can be on it, a host tier included.
class FailingEngine {
 public:
  /// @param windows  Its batcher has window tables, and no prefix cache then.
  FailingEngine(unsigned seed, bool windows)
      : random_(seed),
        batcher_(windows ? Batcher(table_, std::array{&windows_[0], &windows_[1]}, kBatcher)
                         : Batcher(table_, cache_, kBatcher)) {}

  void turn() {
    const std::array<std::function<void()>, 26> calls = {
        [this] { allocate(); },        [this] { retain(); },   [this] { release(); },
        [this] { create(); },          [this] { fork(); },     [this] { append(); },
        [this] { append(); },          [this] { truncate(); }, [this] { accept_tree(); },
        [this] { destroy(); },         [this] { publish(); },  [this] { match_and_adopt(); },
        [this] { evict(); },           [this] { save(); },     [this] { build(); },
        [this] { submit(); },          [this] { submit(); },   [this] { cancel(); },
        [this] { plan_and_commit(); }, [this] { finish(); },   [this] { offload(); },
        [this] { fetch(); },           [this] { retire(); },   [this] { evict_host(); },
        [this] { slide(); },           [this] { slide(); }};
    calls[static_cast<std::size_t>(upto(25))]();
  }
  /// Every call made so far.
  [[nodiscard]] const std::map<std::string, Tally>& tallies() const { return tallies_; }

 private:
  /// Makes the call with its first allocation failing, then its second, … until it needs no more.
  /// @param after  Looks at what is not the engine's, with memory, each time.
  /// @return True if it succeeded.
  bool call(
      const std::string& name, const std::function<Status()>& make,
      const std::function<void(bool)>& after = [](bool) {}) {
    Tally& tally = tallies_[name];
    ++tally.calls;
    const Numbers before = everything();
    for (int allowed = 0;; ++allowed) {
      Status status;
      bool fired = false;
      {
        const FailingNew failing(
            allowed, allowed % 2 == 0 ? FailingNew::Which::kOne : FailingNew::Which::kAllFromThere);
        status = make();
        fired = failing.fired();
      }
      expect_sound(name);
      after(status.ok());
      if (!fired) {
        if (!status.ok()) ++tally.refusals;
        return status.ok();
      }
      EXPECT_FALSE(status.ok()) << name;
      if (status.code() == ErrorCode::kOutOfMemory) {
        ++tally.failures;
      } else if (name == "Batcher::commit") {
        return false;  // a refusal that found no memory for its sentence; it may have evicted
      }
      const Numbers after_it = everything();
      EXPECT_TRUE(after_it == before)
          << name << " with allocation " << allowed << ", first at "
          << std::ranges::mismatch(after_it, before).in1 - after_it.begin() << " of "
          << before.size();
      if (testing::Test::HasFailure()) return false;
    }
  }

  void expect_sound(const std::string& name) {
    EXPECT_TRUE(pool_.check().ok()) << name << ": " << pool_.check().message();
    EXPECT_TRUE(host_.check().ok()) << name << ": " << host_.check().message();
    EXPECT_TRUE(table_.check().ok()) << name << ": " << table_.check().message();
    EXPECT_TRUE(sliding_.check().ok()) << name << ": " << sliding_.check().message();
    EXPECT_TRUE(cache_.check().ok()) << name << ": " << cache_.check().message();
    EXPECT_TRUE(batcher_.check().ok()) << name << ": " << batcher_.check().message();
  }

  /// Whatever a call may change.
  Numbers everything() {
    Numbers all;
    for (PagePool* const each :
         {&pool_, &host_, &window_pools_[0], &window_pools_[1], &sliding_pool_}) {
      const auto& pool = internal::TestAccess::state(*each);
      for (const auto& page : pool.pages) {
        all.insert(all.end(), {page.refs, page.caller_refs, page.indexed ? 1 : 0, page.transfers});
      }
      all.insert(all.end(), pool.free_pages.begin(), pool.free_pages.begin() + pool.num_free);
      all.push_back(pool.num_idle);
    }
    for (PageTable* const each : {&table_, &windows_[0], &windows_[1], &sliding_}) {
      const auto& table = internal::TestAccess::state(*each);
      for (std::int32_t slot = 0; slot < table.spec.max_seqs; ++slot) {
        const auto& sequence = table.at(slot);
        all.insert(all.end(),
                   {sequence.generation, sequence.length, sequence.next_free, sequence.holes});
        const std::span<const PageId> row = table.pages(slot);
        all.insert(all.end(), row.begin(), row.end());
      }
    }
    const PrefixCacheStats cache = cache_.stats();
    all.insert(all.end(), {cache.pages, cache.leases, cache.stored, cache.evicted, cache.lookups,
                           cache.asked_tokens, cache.hit_tokens, cache.offloaded, cache.fetched,
                           cache.declined, cache.host_evicted, cache.host_pages, cache.in_flight});
    const auto& batcher = internal::TestAccess::state(batcher_);
    for (const auto& place : batcher.places) {
      const auto id = static_cast<std::int64_t>(place.request.id);
      all.insert(all.end(), {id, place.seq.slot, place.seq.generation, place.cached,
                             place.num_pages, place.tail_room, place.generated, place.prev,
                             place.next, place.first_sample, static_cast<int>(place.phase),
                             place.step_tokens[0], place.step_tokens[1], place.published,
                             place.stops ? 1 : 0, place.stopped ? 1 : 0, place.cancelled ? 1 : 0});
      if (!batcher.texts.empty()) all.push_back(std::ssize(batcher.text_of(place).tokens));
    }
    all.insert(all.end(), batcher.running.begin(), batcher.running.end());
    const BatcherStats stats = batcher_.stats();
    all.insert(all.end(), {std::ssize(batcher.index_of), std::ssize(batcher.leases),
                           batcher.first_free, batcher.oldest_waiting, batcher.num_waiting,
                           static_cast<std::int64_t>(batcher.step), stats.finished, stats.steps,
                           stats.cancelled, stats.hit_tokens});
    const RecorderLosses losses = recorder_.losses();
    all.insert(all.end(), {std::ssize(events()), losses.events, losses.steps, losses.ended});
    all.insert(all.end(), {std::ssize(copies_), std::ssize(held_), std::ssize(ended_)});
    return all;
  }
  std::vector<RequestEvent> events() {
    std::vector<RequestEvent> all;
    for (std::size_t i = 0; i < recorder_.events().size(); ++i)
      all.push_back(recorder_.events()[i]);
    return all;
  }

  // -- Calls. Vectors that a call fills are new, so that it has to ask for memory.

  void allocate() {
    std::vector<PageId> pages(static_cast<std::size_t>(upto(2)));
    if (call("PagePool::allocate", [&] { return pool_.allocate(pages); })) {
      held_.insert(held_.end(), pages.begin(), pages.end());
    }
  }
  void retain() {
    const PageId page = upto(kPages - 1);
    if (call("PagePool::retain", [&] { return pool_.retain(page); })) held_.push_back(page);
  }
  void release() {
    if (held_.empty()) return;
    std::shuffle(held_.begin(), held_.end(), random_);
    const std::size_t count = 1 + static_cast<std::size_t>(upto(3)) % held_.size();
    const std::span last = std::span(held_).last(count);
    EXPECT_TRUE(call("PagePool::release", [&] { return pool_.release(last); }));
    held_.resize(held_.size() - count);
  }
  void create() {
    SeqId seq;
    if (call("PageTable::create", [&] { return keep(table_.create(), seq); })) seqs_.push_back(seq);
  }
  void fork() {
    if (seqs_.empty()) return;
    const SeqId parent = any(seqs_);
    const std::int32_t length = upto(table_.length(parent));
    SeqId seq;
    if (call("PageTable::fork", [&] { return keep(table_.fork(parent, length), seq); })) {
      seqs_.push_back(seq);
    }
  }
  void append() {
    if (seqs_.empty()) return;
    const SeqId seq = any(seqs_);
    const std::int32_t n = upto(9);
    copies_ = std::vector<CopyOp>();
    call("PageTable::append", [&] { return table_.append(seq, n, copies_); });
  }
  void truncate() {
    if (seqs_.empty()) return;
    const SeqId seq = any(seqs_);
    const std::int32_t length = upto(table_.length(seq));
    EXPECT_TRUE(call("PageTable::truncate", [&] { return table_.truncate(seq, length); }));
  }
  void accept_tree() {
    if (seqs_.empty()) return;
    const SeqId seq = any(seqs_);
    const std::int32_t drafts = std::min(table_.length(seq), 5);
    std::vector<std::int32_t> path;
    for (std::int32_t draft = 0; draft < drafts; ++draft) {
      if (upto(1) == 1) path.push_back(draft);
    }
    copies_ = std::vector<CopyOp>();
    call("PageTable::accept_tree",
         [&] { return table_.accept_tree(seq, table_.length(seq) - drafts, path, copies_); });
  }
  void destroy() {
    if (seqs_.empty()) return;
    const SeqId seq = any(seqs_);
    EXPECT_TRUE(call("PageTable::destroy", [&] { return table_.destroy(seq); }));
    std::erase(seqs_, seq);
  }
  /// Of a table with a window: a sequence grows, and its window moves on.
  void slide() {
    if (sliding_.num_seqs() == 0) slider_ = *sliding_.create();
    const std::int32_t tokens = upto(5);
    copies_ = std::vector<CopyOp>();
    if (!call("PageTable::append", [&] { return sliding_.append(slider_, tokens, copies_); })) {
      EXPECT_TRUE(sliding_.destroy(slider_).ok());
      return;
    }
    const std::int32_t position = upto(sliding_.length(slider_));
    call("PageTable::slide", [&] { return sliding_.slide(slider_, position); });
  }
  void publish() {
    if (seqs_.empty()) return;
    const SeqId seq = any(seqs_);
    const std::vector<std::int32_t> tokens = text(table_.length(seq));
    call("PrefixCache::publish", [&] {
      const Result<std::int32_t> stored = cache_.publish(0, table_, seq, tokens);
      return stored.ok() ? Status() : stored.status();
    });
  }
  void match_and_adopt() {
    const std::vector<std::int32_t> tokens = text(upto(kMaxTokens));
    PrefixLease lease;
    call("PrefixCache::match", [&] {
      lease = cache_.match(0, tokens);
      return Status();
    });
    SeqId seq;
    if (lease.num_tokens() > 0 &&
        call("PrefixCache::adopt", [&] { return keep(cache_.adopt(lease, table_), seq); })) {
      seqs_.push_back(seq);
    }
  }
  void evict() {
    const std::int32_t pages = upto(4);
    call("PrefixCache::evict", [&] {
      cache_.evict(pages);
      return Status();
    });
  }
  void save() {
    std::vector<std::byte> bytes;
    EXPECT_TRUE(call(
        "PrefixCache::save", [&] { return cache_.save(bytes); },
        [&](bool saved) { EXPECT_TRUE(saved || bytes.empty()); }));
    PagePool pool({.num_pages = kPages, .page_size = kPageSize});
    PagePool host({.num_pages = kHostPages, .page_size = kPageSize});
    PrefixCache copy(pool, host);
    std::vector<RestoredPage> pages;
    EXPECT_TRUE(call(
        "PrefixCache::restore", [&] { return copy.restore(bytes, pages); },
        [&](bool restored) {
          EXPECT_TRUE(copy.check().ok()) << copy.check().message();
          EXPECT_TRUE(restored || (pool.num_used() + host.num_used() == 0 && pages.empty()));
        }));
    EXPECT_EQ(copy.stats().pages, cache_.stats().pages);
  }
  void offload() {
    TransferPlan plan;
    const std::int32_t pages = upto(6);
    EXPECT_TRUE(call("PrefixCache::offload", [&] {
      const Result<std::int32_t> moved = cache_.offload(pages, plan);
      return moved.ok() ? Status() : moved.status();
    }));
    if (plan.ticket != 0) tickets_.push_back(plan.ticket);
  }
  void fetch() {
    TransferPlan plan;
    const std::vector<std::int32_t> tokens = text(upto(kMaxTokens));
    call("PrefixCache::fetch", [&] {
      const Result<std::int32_t> moved = cache_.fetch(0, tokens, plan);
      return moved.ok() ? Status() : moved.status();
    });
    if (plan.ticket != 0) tickets_.push_back(plan.ticket);
  }
  void retire() {
    if (tickets_.empty()) return;
    const std::uint64_t ticket = any(tickets_);
    EXPECT_TRUE(call("PrefixCache::retire", [&] {
      cache_.retire(ticket);
      return Status();
    }));
    std::erase(tickets_, ticket);
  }
  void evict_host() {
    const std::int32_t pages = upto(2);
    EXPECT_TRUE(call("PrefixCache::evict_host", [&] {
      cache_.evict_host(pages);
      return Status();
    }));
  }
  void build() {
    std::vector<BatchEntry> entries;
    for (const SeqId seq : seqs_) {
      if (upto(1) == 1) entries.push_back({seq, upto(table_.length(seq))});
    }
    call("BatchBuilder::build", [&] {
      const Result<StagedBatch> batch = builder_.build(entries, staging_);
      return batch.ok() ? Status() : batch.status();
    });
    call("BatchBuilder::update", [&] {
      const BatchShape shape{10, 10 * kMaxTokens, kMaxTokens / kPageSize, 10 * kPages};
      const Result<StagedBatch> batch = builder_.update(entries, shape, staging_);
      return batch.ok() ? Status() : batch.status();
    });
  }
  void submit() {
    const std::int32_t prompt = 1 + upto(12);
    const std::vector<std::int32_t> tokens = text(prompt);
    std::vector<std::uint64_t> further(upto(4) == 0 ? 2 : 0);
    for (std::uint64_t& id : further) id = ++next_id_;
    Request request{++next_id_, prompt, 1 + upto(8)};
    if (upto(3) > 0) request.prompt = tokens;
    request.further_samples = further;
    if (!call("Batcher::submit", [&] { return batcher_.submit(request); })) return;
    record("Recorder::submitted", [&] { recorder_.submitted(request, now_); });
    ids_.push_back(request.id);
    ids_.insert(ids_.end(), further.begin(), further.end());
  }
  void cancel() {
    if (ids_.empty()) return;
    const std::uint64_t id = any(ids_);
    const std::int64_t cancelled = batcher_.stats().cancelled;
    if (!call("Batcher::cancel", [&] { return batcher_.cancel(id); })) return;
    if (batcher_.stats().cancelled == cancelled) return;  // it ends with its step
    record("Recorder::cancelled", [&] { recorder_.cancelled(id, now_); });
  }
  void plan_and_commit() {
    StepPlan plan;
    const StepBudget budget{1 + upto(12), 1 + upto(5)};
    if (!call("Batcher::plan", [&] { return batcher_.plan(budget, plan); })) return;
    std::vector<PageId> taken(upto(4) == 0 ? static_cast<std::size_t>(pool_.num_free()) : 0);
    EXPECT_TRUE(pool_.allocate(taken).ok());
    copies_ = std::vector<CopyOp>();
    const bool committed = call(
        "Batcher::commit", [&] { return batcher_.commit(plan, copies_); },
        [this](bool) {
          const auto& state = internal::TestAccess::state(batcher_);
          EXPECT_TRUE(state.leases.empty() && state.pins.empty());
        });
    EXPECT_TRUE(pool_.release(taken).ok());
    if (!committed) return;
    record("Recorder::committed", [&] { recorder_.committed(plan, batcher_.stats(), now_); });
    in_flight_.push_back(plan);
  }
  void finish() {
    if (in_flight_.empty()) return;
    const StepPlan plan = in_flight_.front();
    const auto& state = internal::TestAccess::state(batcher_);
    std::vector<std::int32_t> sampled;
    for (const StepItem& item : plan.items) {
      if (!item.samples) continue;
      const auto& place = state.at(state.index_of.find(item.request)->second);
      const std::int32_t tokens = place.bears(plan.step % 2) ? 1 + state.count_unborn(place) : 1;
      for (std::int32_t i = 0; i < tokens; ++i) sampled.push_back(upto(1));
    }
    ended_ = std::vector<std::uint64_t>();
    ASSERT_TRUE(
        call("Batcher::finish", [&] { return batcher_.finish(plan, sampled, {}, ended_); }));
    record("Recorder::finished", [&] { recorder_.finished(ended_, ++now_); });
    in_flight_.erase(in_flight_.begin());
  }
  void record(const std::string& name, const std::function<void()>& make) {
    EXPECT_TRUE(call(name, [&] {
      make();
      return Status();
    }));
  }

  static Status keep(const Result<SeqId>& made, SeqId& seq) {
    if (!made.ok()) return made.status();
    seq = *made;
    return {};
  }
  std::int32_t upto(std::int32_t most) {
    return std::uniform_int_distribution<std::int32_t>(0, most)(random_);
  }
  template <typename T>
  T any(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(upto(static_cast<std::int32_t>(from.size()) - 1))];
  }
  /// Of two letters, so that much begins alike.
  std::vector<std::int32_t> text(std::int32_t length) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
    for (std::int32_t& token : tokens) token = upto(3) == 0 ? 1 : 0;
    return tokens;
  }

  static constexpr BatcherSpec kBatcher{.max_requests = 12, .max_steps_in_flight = 2};
  static PageTableSpec seqs_of(std::int32_t window) {
    return {.max_seqs = 10, .max_tokens_per_seq = kMaxTokens, .window_left = window};
  }

  std::mt19937 random_;
  std::map<std::string, Tally> tallies_;
  PagePool pool_{{.num_pages = kPages, .page_size = kPageSize}};
  PageTable table_{pool_, seqs_of(-1)};
  PagePool host_{{.num_pages = kHostPages, .page_size = kPageSize}};
  // A model so slow that all pages are worth a way to the host and back.
  PrefixCache cache_{pool_, host_, {.costs = {.prefill_tokens_per_second = 1}}};
  BatchBuilder builder_{table_};
  std::array<PagePool, 2> window_pools_{PagePool({.num_pages = 40, .page_size = kPageSize}),
                                        PagePool({.num_pages = 50, .page_size = kPageSize})};
  std::array<PageTable, 2> windows_{PageTable(window_pools_[0], seqs_of(5)),
                                    PageTable(window_pools_[1], seqs_of(9))};
  PagePool sliding_pool_{{.num_pages = 6, .page_size = kPageSize}};
  PageTable sliding_{sliding_pool_, seqs_of(6)};
  SeqId slider_;
  Batcher batcher_;
  Recorder recorder_{{.max_events = 64, .max_steps = 16, .max_ended = 16, .max_requests = 12}};
  std::vector<PageId> held_;
  std::vector<SeqId> seqs_;
  std::vector<std::uint64_t> ids_;
  std::vector<std::uint64_t> ended_;
  std::vector<CopyOp> copies_;
  std::vector<StepPlan> in_flight_;
  std::vector<std::uint64_t> tickets_;
  std::vector<std::byte> staging_ = std::vector<std::byte>(1 << 16);
  std::uint64_t next_id_ = 0;
  double now_ = 0;
};

}  // namespace quire::test
