// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `Batcher` holds: its requests, the queue of the waiting and the list of the running, both
/// in the order of arrival.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/page_table_state.hpp"
#include "cache/prefix_cache_state.hpp"
#include "quire/batcher.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

struct BatcherState {
  static constexpr std::int32_t kNobody = -1;

  enum class Phase : std::uint8_t { kFree, kWaiting, kRunning, kUnborn };

  /// A place for a request. Places are reused; free ones are linked through `next`, waiting ones
  /// through `next` and `prev`, further samples that have not begun through `next`, and `prev` is the
  /// request that they are of.
  struct Place {
    /// What is asked of a `Request` in every step.
    struct Asked {
      std::uint64_t id = 0;
      std::int32_t prompt_tokens = 0;
      std::int32_t max_new_tokens = 0;
    };

    Asked request;
    double turn = 0.0;         ///< its arrival without its head start
    std::uint64_t ticket = 0;  ///< number of its `submit`: breaks ties
    SeqId seq;                 ///< while running
    std::int32_t cached = 0;   ///< tokens that its sequence has, those of steps in flight included
    std::int32_t num_pages = 0;  ///< that hold them
    std::int32_t tail_room = 0;  ///< tokens that the last of these still holds
    std::int32_t generated = 0;  ///< tokens sampled; a preemption keeps them
    std::int32_t prev = kNobody;
    std::int32_t next = kNobody;
    std::int32_t first_sample = kNobody;  ///< of its further samples that have not begun
    Phase phase = Phase::kFree;
    /// Its part in the steps in flight, each at the parity of its number: tokens, and whether the last
    /// row yields its next one.
    std::array<std::int32_t, 2> step_tokens{};
    std::array<bool, 2> samples{};
    bool stops = false;          ///< scratch of `finish`: by the step being finished
    bool stopped = false;        ///< by a step before; ends with the last one in flight
    bool cancelled = false;      ///< ends with the last step in flight
    bool shares = false;         ///< has a text, and there is a cache
    std::int32_t published = 0;  ///< whole pages of its sequence that were put into the cache
    std::int32_t junction = 0;   ///< whole pages that the cache had of it as it was admitted

    /// @return Tokens whose text the host knows.
    [[nodiscard]] std::int32_t known() const noexcept { return request.prompt_tokens + generated; }
    [[nodiscard]] std::int32_t awaited() const noexcept {
      return (samples[0] ? 1 : 0) + (samples[1] ? 1 : 0);
    }
    /// @return Tokens whose text is known, by the device at least once the steps in flight have run:
    ///   all of them have to be cached before the next is sampled.
    [[nodiscard]] std::int32_t known_or_awaited() const noexcept { return known() + awaited(); }
    [[nodiscard]] std::int32_t missing() const noexcept { return known_or_awaited() - cached; }
    [[nodiscard]] std::int32_t in_flight() const noexcept {
      return step_tokens[0] + step_tokens[1];
    }
    /// @return True if its further samples begin with that step.
    [[nodiscard]] bool bears(std::size_t parity) const noexcept {
      return samples[parity] && generated == 0 && first_sample != kNobody;
    }
    /// @return False if it waits only for the end of the steps in flight.
    [[nodiscard]] bool goes_on() const noexcept {
      return !cancelled && !stopped && generated + awaited() < request.max_new_tokens;
    }
    [[nodiscard]] bool decodes() const noexcept { return missing() == 1 && goes_on(); }
    /// @return True if a page of its sequence has become whole since the last one was published.
    [[nodiscard]] bool has_filled() const noexcept {
      return num_pages - (tail_room > 0 ? 1 : 0) > published;
    }
  };
  /// What a request that shares pages goes by. Apart from its place, which every step reads.
  struct Text {
    std::uint64_t name_space = 0;
    Retention retention;
    std::vector<std::int32_t> tokens;  ///< the first ones of the known
  };

  /// The pages of a window table that hold the window at the end of a prefix.
  struct Suffix {
    NodeId node = kNoNode;  ///< of the last page of the prefix; `kNoNode`: nothing is kept here
    std::uint64_t serial = 0;
    std::uint64_t last_use = 0;
    std::int32_t first = 0;  ///< entry of the first page in a sequence
    std::int32_t count = 0;
  };
  /// A table of layers with a window, in which each running request has a sequence too.
  struct Window {
    PageTable table;
    PageTableState& sequences;         ///< its
    std::vector<SeqId> seqs{};         ///< by place
    std::int32_t share = 0;            ///< pages of a sequence
    std::int32_t suffix_pages = 0;     ///< of a window, wherever it begins
    std::vector<Suffix> suffixes{};    ///< `cached_windows` of them, with a prefix cache
    std::vector<PageId> pages{};       ///< [suffixes, suffix_pages]
    std::vector<std::int32_t> kept{};  ///< by node of the cache: its suffix, or one that was its
    /// By page, all zero between calls: references that are about to go.
    mutable std::vector<std::int32_t> dropped{};
    mutable std::vector<PageId>
        touched{};  ///< where it is not; room for all, so that it never grows
  };
  class WindowDemand;

  /// @param table_state  Of the table, which keeps it alive.
  BatcherState(PageTable shared_table, PageTableState& table_state,
               std::shared_ptr<PrefixCacheState> cache_state, const BatcherSpec& batcher_spec);
  BatcherState(const BatcherState&) = delete;
  BatcherState& operator=(const BatcherState&) = delete;
  ~BatcherState();

  [[nodiscard]] Place& at(std::int32_t index) noexcept {
    return places[static_cast<std::size_t>(index)];
  }
  [[nodiscard]] const Place& at(std::int32_t index) const noexcept {
    return places[static_cast<std::size_t>(index)];
  }
  [[nodiscard]] Text& text_of(const Place& place) noexcept {
    return texts[static_cast<std::size_t>(&place - places.data())];
  }
  [[nodiscard]] const Text& text_of(const Place& place) const noexcept {
    return texts[static_cast<std::size_t>(&place - places.data())];
  }
  /// @return True if request `a` goes before request `b`.
  [[nodiscard]] bool before(std::int32_t a, std::int32_t b) const noexcept {
    return std::pair(at(a).turn, at(a).ticket) < std::pair(at(b).turn, at(b).ticket);
  }
  [[nodiscard]] std::int32_t pages_for(std::int32_t tokens) const noexcept {
    const std::int32_t page_size = table.pool_spec().page_size;
    return tokens / page_size + (tokens % page_size != 0 ? 1 : 0);
  }
  /// @return True if the sequence of a running request is as the batcher left it.
  [[nodiscard]] bool is_as_left(const Place& place) const noexcept {
    const std::int32_t slot = sequences.find(place.seq);
    return slot != PageTableState::kNoSlot && sequences.at(slot).length == place.cached;
  }
  /// @return Pages that one more token takes, of a sequence that is as it was left: what
  ///   `table.pages_needed(seq, 1)` says, without a division. Every decode of every step asks.
  [[nodiscard]] std::int32_t pages_for_next(const Place& place) const noexcept {
    if (place.tail_room == 0) return 1;
    return tail_is_shared(place) ? 1 : 0;
  }
  /// @return Pages that `n` more tokens take, once those that are about to go have gone.
  [[nodiscard]] std::int32_t pages_needed(const Place& place, std::int32_t n) const noexcept {
    return table.pages_needed(place.seq, n) - (copy_is_spared(place) ? 1 : 0);
  }
  /// @return Tokens that a sequence can append to `free_pages` pages, likewise.
  [[nodiscard]] std::int32_t room(const Place& place, std::int64_t free_pages) const noexcept {
    return table.room(place.seq, free_pages + (copy_is_spared(place) ? 1 : 0));
  }
  /// The sequence of a request has `n` more tokens.
  void grow(Place& place, std::int32_t n) const noexcept {
    place.cached += n;
    place.tail_room -= n;
    if (place.tail_room >= 0) return;
    const std::int64_t page_size = sequences.pool->spec.page_size;
    const std::int64_t added = (page_size - 1 - place.tail_room) / page_size;
    place.num_pages += static_cast<std::int32_t>(added);
    place.tail_room += static_cast<std::int32_t>(added * page_size);
  }

  /// @return The pages that a running request holds; none if its sequence is gone.
  [[nodiscard]] std::span<const PageId> pages_of(std::int32_t index) const noexcept {
    const std::int32_t slot = sequences.find(at(index).seq);
    if (slot == PageTableState::kNoSlot) return {};
    return sequences.held_pages(slot);
  }

  [[nodiscard]] std::int32_t steps_in_flight() const noexcept {
    return static_cast<std::int32_t>(step - oldest);
  }
  /// @return The place of a step in `Place::submitted` and `Place::samples`.
  [[nodiscard]] static std::size_t parity(std::uint64_t number) noexcept { return number & 1U; }

  /// @return The item of a request that computes `n` tokens next.
  /// @param found  Tokens that the prefix cache has of a waiting one.
  [[nodiscard]] StepItem item(std::int32_t index, std::int32_t n,
                              std::int32_t found) const noexcept;

  /// Further samples: samples.cpp.
  [[nodiscard]] std::int32_t count_unborn(const Place& place) const noexcept;
  void unlink_unborn(std::int32_t index) noexcept;
  /// Begins the further samples of a request: `begin_born` ends it. There is room in `born`.
  void bear(Place& place) noexcept;
  /// Those that were borne run, wait if there was no sequence for them, or end. There is room.
  void begin_born(std::vector<std::uint64_t>& ended) noexcept;
  /// Ends the further samples of a request that ends itself, those that have not begun.
  void end_unborn(Place& place, std::vector<std::uint64_t>* ended) noexcept;

  /// Sharing of prefixes: prefix_sharing.cpp.
  /// @return The known tokens that the cache may have: all but the last, as far as they were told.
  [[nodiscard]] std::span<const std::int32_t> askable(const Place& place) const noexcept;
  /// What the cache has of a request, and what beginning with it takes.
  struct Hit {
    std::int32_t tokens = 0;
    std::int32_t whole_pages = 0;  ///< of these on the device; the rest of them is on one more page
    std::int32_t idle_pages = 0;   ///< of all these pages, which no longer count as free
    std::int32_t host_pages = 0;   ///< whole pages that come from the host
    std::int32_t copied_pages =
        0;                 ///< one more that does: the request ends inside it, and copies it
    bool pending = false;  ///< a transfer of others still writes to some of them
  };
  [[nodiscard]] Hit find_hit(const Place& place) const noexcept;
  [[nodiscard]] Hit find_hit_with_windows(const PrefixCacheState::Path& path,
                                          const PrefixRun& prefix) const noexcept;
  void count_page(NodeId id, Hit& hit) const noexcept;
  [[nodiscard]] Hit without_partial_page(const Hit& hit) const noexcept;
  /// Pins the pages of the first tokens of a request that are on the device, and those behind them on the
  /// host. There is room in `pins` for both.
  /// @return Pages on the host; 0, and nothing is pinned, if all of the tokens are on the device, or not
  ///   all are in the cache, or written.
  std::int32_t pin_host_part(const Place& place, std::span<const std::int32_t> tokens) noexcept;
  /// @return Tokens on whole pages of `a` that `b` may begin with.
  [[nodiscard]] std::int32_t shared_tokens(const Place& a, const Place& b) const noexcept;
  /// @return Pages that can be had without preempting anybody.
  [[nodiscard]] std::int64_t available_pages() const noexcept;
  /// @return Pages that can be had once the transfers of others have retired.
  [[nodiscard]] std::int64_t pages_once_retired() const noexcept;
  /// @return True if others hold pages of the index, so that those before them are idle and cannot go.
  [[nodiscard]] bool holds_are_mixed() const noexcept {
    return others_hold || (prefixes && prefixes->num_fetching > 0);
  }
  /// Takes pages out of the cache, or sends them to the host, until `pages` are free or as many as can be.
  void evict_for(std::int64_t pages, TransferPlan& transfers) noexcept;
  /// Takes back what `evict_for` sent: it is evicted instead.
  void evict_sent(TransferPlan& transfers) noexcept;
  /// Gets what the host has of the first tokens of a request, and begins its sequence with them.
  [[nodiscard]] SeqId adopt(const Place& place, std::int32_t tokens, const PrefixLease& lease,
                            TransferPlan& transfers) noexcept;
  /// @return True if a request that is preempted now is sooner back from the host than computed again.
  [[nodiscard]] bool is_worth_swapping(const Place& place) const noexcept;
  [[nodiscard]] bool keeps_private(PageId id) const noexcept;
  /// The pages that became whole. @param written  Tokens of finished steps.
  void publish_filled(Place& place, std::int32_t written) noexcept;
  void publish_all(const Place& place) noexcept;  ///< what is cached, before the sequence goes

  /// The pages that preempting the newest requests, one after another, gives back; a page that
  /// several share counts once all of them are among these. One at a time.
  class Reclaim {
   public:
    explicit Reclaim(const BatcherState& batcher) noexcept : batcher_(batcher) {}
    Reclaim(const Reclaim&) = delete;
    Reclaim& operator=(const Reclaim&) = delete;
    ~Reclaim();
    void add_next() noexcept;
    /// @return Pages that nobody refers to any more.
    [[nodiscard]] std::int64_t freed() const noexcept { return freed_; }
    /// @return Pages that only the prefix cache refers to.
    [[nodiscard]] std::int64_t idle() const noexcept { return idle_; }
    /// @return Pages that can be had then.
    [[nodiscard]] std::int64_t total() const noexcept {
      return freed_ + (batcher_.holds_are_mixed() ? 0 : idle_);
    }

   private:
    const BatcherState& batcher_;
    std::int64_t freed_ = 0;
    std::int64_t idle_ = 0;
    std::size_t first_ = batcher_.running.size();  ///< rank of the last one added
  };

  /// Window tables: windows.cpp.
  /// @param table_state  Of the table, which keeps it alive.
  /// @throws Error `kInvalidArgument` if the table does not fit the batcher's.
  void add_window(PageTable window_table, PageTableState& table_state);
  /// @return An error if others have taken pages or sequences of a window table.
  [[nodiscard]] Status check_windows(const StepPlan& plan) const noexcept;
  /// Room in the plan for what `append_windows` writes. @throws std::bad_alloc
  void reserve_windows(StepPlan& plan) const;
  /// Begins the sequences of an item that is admitted, and appends its tokens.
  void append_windows(const StepItem& item, StepPlan& plan) noexcept;
  [[nodiscard]] bool slides() const noexcept {
    return !windows.empty() || sequences.spec.window_left >= 0;
  }
  /// Gives back what no query behind the written tokens sees, nor one behind the whole pages of these.
  void slide(const Place& place, std::int32_t written) noexcept;
  void fork_windows(const Place& place, std::int32_t sample, std::int32_t length) noexcept;
  /// Ends a request's sequences in all tables.
  void destroy_sequences(const Place& place) noexcept;

  /// Windows at the ends of prefixes: window_suffixes.cpp.
  [[nodiscard]] std::int32_t find_suffix(const Window& window, NodeId node) const noexcept;
  /// @return True if all window tables have kept the window at the end of a prefix.
  [[nodiscard]] bool have_suffix(NodeId node) const noexcept;
  /// @return The node of a prefix of whole pages, else `kNoNode`.
  [[nodiscard]] NodeId end_of(const Place& place, std::int32_t tokens) const noexcept;
  /// @return Whole pages that the cache has of a request.
  [[nodiscard]] std::int32_t known_pages(const Place& place) const noexcept;
  /// Keeps the windows at the end of the whole pages that the written tokens of a running request fill.
  void keep_windows(const Place& place, std::int32_t written) noexcept;
  /// Those of a step that wrote the tokens from `before` to `after`.
  void keep_windows_between(const Place& place, std::int32_t before, std::int32_t after) noexcept;
  /// @return Of a prefix of `shared` tokens that a request computes, those that others can go on from.
  [[nodiscard]] std::int32_t left_for_others(const Place& place,
                                             std::int32_t shared) const noexcept;
  [[nodiscard]] SeqId begin_window(Window& window, NodeId node, std::int32_t length) noexcept;
  void release_suffix(Window& window, std::int32_t index) noexcept;
  [[nodiscard]] Status check_suffixes() const noexcept;

  /// Changes of state that cannot fail; callers have checked that they are allowed.
  void enqueue_new(std::int32_t index) noexcept;        ///< looks for its place from the tail
  void enqueue_preempted(std::int32_t index) noexcept;  ///< looks for its place from the head
  void unlink(std::int32_t index) noexcept;             ///< of a waiting request
  void run(std::int32_t index) noexcept;                ///< inserts into `running`
  void preempt_newest() noexcept;
  void end(std::int32_t index) noexcept;  ///< of a request that has left its list

  /// @return True if its last page, shared now, is its alone once those that are about to go have gone.
  [[nodiscard]] bool copy_is_spared(const Place& place) const noexcept {
    if (!is_as_left(place) || place.tail_room == 0) return false;
    return sequences.pool->page(tail_of(place)).refs > 1 && !tail_is_shared(place);
  }
  /// @return True if others refer to its partial last page than those that are about to go.
  [[nodiscard]] bool tail_is_shared(const Place& place) const noexcept {
    const PageId tail = tail_of(place);
    const std::int32_t refs = sequences.pool->page(tail).refs;
    return refs > 1 && refs - dropped[static_cast<std::size_t>(tail)] > 1;
  }
  /// @return The last page of a running request; a page that it once had, if its sequence is not as
  ///   it was left.
  [[nodiscard]] PageId tail_of(const Place& place) const noexcept {
    return sequences.row(static_cast<std::int32_t>(place.seq.slot))[place.num_pages - 1];
  }

  BatcherSpec spec;
  PageTable table;
  std::shared_ptr<PrefixCacheState> prefixes;  ///< null without a prefix cache
  std::optional<PrefixCache> cache;            ///< it
  PageTableState& sequences;  ///< the table's, for what is asked of every item of every step
  std::vector<Window> windows;
  std::uint64_t suffix_clock = 0;
  /// New tokens that a request may compute in a step: what the smallest share of a window table holds.
  std::int32_t max_chunk = std::numeric_limits<std::int32_t>::max();
  std::vector<Place> places;
  std::vector<Text> texts;                                   ///< by place; none without a cache
  std::unordered_map<std::uint64_t, std::int32_t> index_of;  ///< by `Request::id`
  std::vector<std::int32_t> running;                         ///< oldest first; `commit` reserves
  std::int32_t first_free = 0;
  std::int32_t oldest_waiting = kNobody;
  std::int32_t newest_waiting = kNobody;
  std::int32_t num_waiting = 0;
  std::int32_t num_unborn = 0;
  std::uint64_t next_ticket = 0;
  std::uint64_t step = 0;    ///< the step to be planned
  std::uint64_t oldest = 0;  ///< the oldest step that is not finished, or `step`
  bool others_hold = false;  ///< the last commit found idle pages that could not be evicted
  /// By page, all zero between calls: references of requests that are about to go.
  mutable std::vector<std::int32_t> dropped;
  std::vector<PrefixLease> leases;  ///< scratch of `commit`
  std::vector<NodeId> pins;         ///< likewise: of the host
  std::vector<std::int32_t> born;   ///< scratch of `finish`
  BatcherStats counters;            ///< without the present state

 private:
  void link(std::int32_t index, std::int32_t prev, std::int32_t next) noexcept;
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
