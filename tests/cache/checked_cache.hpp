// SPDX-License-Identifier: Apache-2.0
/// @file
/// A prefix cache, a page table and a small cache of tokens next to a naive oracle: for each page in
/// the index all tokens up to its end. Calls are drawn from numbers, which a random generator or a
/// fuzzer makes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <source_location>
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
  struct Stored {
    std::uint64_t name_space = 0;
    std::vector<std::int32_t> prefix;
    PageId parent = kNoPage;
    std::int64_t last_use = 0;
    std::int64_t last_time = 0;
    Retention retention;
  };
  struct Sequence {
    SeqId id;
    std::uint64_t name_space = 0;
    std::vector<std::int32_t> tokens;
  };
  struct Held {
    PrefixLease lease;
    std::vector<PageId> pages;
  };

  void on_event(const PrefixEvent& event) noexcept override;
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

  [[nodiscard]] std::vector<std::int32_t> some_tokens();
  [[nodiscard]] Sequence* some_seq();
  [[nodiscard]] std::int32_t longest_match(std::uint64_t name_space,
                                           const std::vector<std::int32_t>& tokens) const;
  void expect_publish(std::uint64_t name_space, const std::vector<std::int32_t>& tokens,
                      const std::vector<PageId>& pages, const Retention& retention,
                      const std::function<Result<std::int32_t>()>& call);
  [[nodiscard]] PageId known_page(std::uint64_t name_space, const std::vector<std::int32_t>& tokens,
                                  std::size_t begin, std::size_t end) const;
  void use(const std::vector<PageId>& pages);
  [[nodiscard]] bool is_held(PageId page) const;
  [[nodiscard]] bool is_leaf(PageId page) const;
  [[nodiscard]] bool may_go(PageId page) const { return is_leaf(page) && !is_held(page); }
  [[nodiscard]] std::int64_t expiry(const Stored& stored) const;
  [[nodiscard]] bool goes_before(const Stored& a, const Stored& b) const;
  [[nodiscard]] std::int32_t naive_evictable() const;
  void compare();

  Choose choose_;
  PagePoolSpec pool_spec_;
  PagePool pool_;
  PageTable table_;
  PrefixCacheSpec spec_;
  PrefixCache cache_;
  std::vector<std::int32_t> contents_;  // [num_pages, page_size]
  std::map<PageId, Stored> stored_;
  std::vector<Sequence> seqs_;
  std::vector<Held> leases_;
  std::vector<PageId> own_;  // references of the caller
  std::vector<PrefixEvent> events_;
  std::int64_t clock_ = 0;
  std::int64_t now_ = 0;
  enum class Eviction { kNone, kAny, kExpired, kErase } evicting_ = Eviction::kNone;
  bool wrong_event_ = false;
};

}  // namespace quire::test
