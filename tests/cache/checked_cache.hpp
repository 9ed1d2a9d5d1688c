// SPDX-License-Identifier: Apache-2.0
/// @file
/// A prefix cache, a page table and a small cache of tokens next to a naive oracle: for each page in
/// the index all tokens up to its end. Calls are drawn from numbers, which a random generator or a
/// fuzzer makes. Half of the caches have a host tier, whose copies are executed at any time before they
/// retire.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <source_location>
#include <span>
#include <vector>

#include "quire/prefix_cache.hpp"

namespace quire::test {

class CheckedCache : private PrefixListener {
 public:
  /// @return A number in [0, limit); `limit` ≥ 1.
  using Choose = std::function<std::int32_t(std::int32_t limit)>;

  explicit CheckedCache(Choose choose);
  ~CheckedCache() override;

  /// Makes a call, compares its outcome with the oracle's, and all that can be asked afterwards.
  /// @throws std::logic_error where the two differ.
  void step();

 private:
  using Tokens = std::vector<std::int32_t>;

  /// A page of one of the pools.
  struct Place {
    PageTier tier = PageTier::kDevice;
    PageId page = kNoPage;

    friend auto operator<=>(const Place&, const Place&) = default;
  };
  struct Stored {
    std::uint64_t name_space = 0;
    Tokens prefix;
    Place parent;
    std::int64_t last_use = 0;
    std::int64_t last_time = 0;
    Retention retention;
  };
  struct Sequence {
    SeqId id;
    std::uint64_t name_space = 0;
    Tokens tokens;
  };
  struct Held {
    PrefixLease lease;
    std::vector<PageId> pages;
  };
  /// A copy that has not retired.
  struct Copy {
    std::uint64_t ticket = 0;
    Place src;
    Place dst;
    std::int32_t tokens = 0;
    bool executed = false;
  };
  /// What the host has behind what the device has of a prefix: all of it, and what can be fetched.
  struct OnHost {
    std::vector<Place> path;
    HostMatch match;
  };
  enum class Call { kNone, kPublish, kEvict, kExpired, kErase, kOffload, kFetch, kEvictHost };

  void on_event(const PrefixEvent& event) noexcept override;
  void note_stored(const PrefixEvent& event);
  void note_removed(const PrefixEvent& event);
  void note_victim(Place place);
  /// What a listener must not see: the step throws afterwards.
  void forbid(bool wrong, std::source_location where = std::source_location::current());
  void require(bool holds, std::source_location where = std::source_location::current()) const;

  void start();
  void publish();
  void publish_own();
  void truncate();
  void destroy();
  void release_lease();
  void evict();
  void erase();
  void pass_time();
  void save_and_restore();
  void misuse();
  /// Of the host tier: checked_tiers.cpp.
  void offload();
  void fetch();
  void retire_some();
  void evict_host();

  [[nodiscard]] Tokens some_tokens();
  [[nodiscard]] Sequence* some_seq();
  [[nodiscard]] std::span<std::int32_t> on_page(Place place);
  [[nodiscard]] std::int32_t longest_match(std::uint64_t name_space, const Tokens& tokens) const;
  void expect_publish(std::uint64_t name_space, const Tokens& tokens,
                      const std::vector<PageId>& pages, const Retention& retention,
                      const std::function<Result<std::int32_t>()>& call);
  [[nodiscard]] PageId known_page(std::uint64_t name_space, const Tokens& tokens, std::size_t begin,
                                  std::size_t end) const;
  void use(const std::vector<Place>& path);
  [[nodiscard]] bool is_held(Place place) const;
  /// @return True if no page of a tier is behind it.
  [[nodiscard]] bool is_leaf(Place place, PageTier tier) const;
  [[nodiscard]] bool may_go(Place place) const {
    return is_leaf(place, place.tier) && !is_held(place);
  }
  /// @return True if it has expired and nothing is behind it.
  [[nodiscard]] bool is_dead(Place place) const;
  [[nodiscard]] std::int64_t expiry(const Stored& stored) const;
  [[nodiscard]] bool goes_before(Place a, Place b) const;
  [[nodiscard]] std::int32_t naive_evictable() const;
  [[nodiscard]] std::ptrdiff_t count(PageTier tier) const;
  void compare();

  [[nodiscard]] OnHost naive_host(std::uint64_t name_space, const Tokens& tokens) const;
  [[nodiscard]] bool is_worth_it(std::int32_t pages, std::int32_t tokens) const;
  void move(Place from, Place to);
  void take(const TransferPlan& plan);
  void execute(Copy& copy);
  void retire(std::uint64_t ticket);
  /// @return True if a copy that has not retired writes it.
  [[nodiscard]] bool is_written_to(Place place) const;
  [[nodiscard]] bool in_flight(Place place) const;
  void compare_tiers();

  Choose choose_;
  PagePoolSpec pool_spec_;
  PagePoolSpec host_spec_;
  bool has_host_;
  PagePool pool_;
  PagePool host_;
  PageTable table_;
  PrefixCacheSpec spec_;
  PrefixCache cache_;
  std::array<Tokens, 2> contents_;  // by tier: [num_pages, page_size]
  std::map<Place, Stored> stored_;
  std::vector<Sequence> seqs_;
  std::vector<Held> leases_;
  std::vector<PageId> own_;  // references of the caller
  std::vector<Copy> copies_;
  std::vector<PrefixEvent> events_;
  std::vector<Stored> gone_from_host_;  // since a page of the device has moved or gone
  bool host_has_lost_ = false;          // in this call
  bool in_order_ = true;                // they have gone in the order of the host
  Place arrived_;                       // the page that it comes from has still to go
  std::int64_t clock_ = 0;
  std::int64_t now_ = 0;
  Call calling_ = Call::kNone;
  std::source_location wrong_event_;
  bool is_wrong_ = false;
};

}  // namespace quire::test
