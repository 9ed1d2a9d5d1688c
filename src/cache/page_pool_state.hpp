// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `PagePool` and the page tables and prefix caches on it share. Nothing is checked here:
/// they check first, then change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "quire/page_pool.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

struct PagePoolState {
  /// Small: a fork touches as many of them as it shares, wherever in the pool they are.
  struct Page {
    std::int32_t refs = 0;         ///< all references; 0 is free
    std::int32_t caller_refs = 0;  ///< those of them that callers hold
    bool indexed = false;          ///< a prefix cache holds one of them
    std::uint8_t transfers = 0;    ///< copies in flight hold so many; the rest are table entries

    [[nodiscard]] std::int32_t table_refs() const noexcept {
      return refs - caller_refs - (indexed ? 1 : 0) - transfers;
    }
    /// @return True if it becomes free with the copies in flight, unless it is used again.
    [[nodiscard]] bool parked() const noexcept { return transfers > 0 && refs == transfers; }

    friend bool operator==(const Page&, const Page&) = default;
  };
  static_assert(sizeof(Page) == 12);

  explicit PagePoolState(const PagePoolSpec& pool_spec)
      : spec(pool_spec),
        pages(static_cast<std::size_t>(pool_spec.num_pages)),
        free_pages(static_cast<std::size_t>(pool_spec.num_pages)),
        num_free(pool_spec.num_pages) {
    std::iota(free_pages.rbegin(), free_pages.rend(), PageId{0});
  }

  [[nodiscard]] Page& page(PageId id) noexcept { return pages[static_cast<std::size_t>(id)]; }
  [[nodiscard]] const Page& page(PageId id) const noexcept {
    return pages[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] bool has(PageId id) const noexcept { return id >= 0 && id < spec.num_pages; }

  /// @return The page that `take` takes next. There must be one.
  [[nodiscard]] PageId next_free() const noexcept {
    return free_pages[static_cast<std::size_t>(num_free - 1)];
  }
  /// Takes the free page that was freed last, with one reference. There must be one.
  PageId take() noexcept {
    const PageId id = next_free();
    page(id).refs = 1;
    --num_free;
    return id;
  }
  void add_ref(PageId id) noexcept {
    if (page(id).refs++ == 1 && page(id).indexed) --num_idle;
  }
  void drop_ref(PageId id) noexcept {
    if (--page(id).refs > 0) {
      if (page(id).refs == 1 && page(id).indexed) ++num_idle;
      return;
    }
    free_pages[static_cast<std::size_t>(num_free++)] = id;
  }
  /// A prefix cache takes a reference to a page in use, or gives its reference back.
  void index(PageId id) noexcept {
    add_ref(id);
    page(id).indexed = true;
  }
  void unindex(PageId id) noexcept {
    if (page(id).refs == 1) --num_idle;
    page(id).indexed = false;
    drop_ref(id);
  }
  /// A copy that reads or writes a page in use is in flight, or has retired.
  void begin_transfer(PageId id) noexcept {
    add_ref(id);
    ++page(id).transfers;
  }
  void end_transfer(PageId id) noexcept {
    --page(id).transfers;
    drop_ref(id);
  }
  /// Undoes the last `drop_ref` that has not been undone.
  void undo_drop_ref(PageId id) noexcept {
    if (page(id).refs > 0) {
      add_ref(id);
    } else {
      take();  // the page freed last is `id`
    }
  }

  /// See `PagePool::check`.
  [[nodiscard]] Status check() const noexcept;

  PagePoolSpec spec;
  std::vector<Page> pages;
  /// The first `num_free` are free, the last of them goes first. An array, not a list through the
  /// pages: who takes a page need not wait for a random line of memory to learn of the next one.
  std::vector<PageId> free_pages;
  std::int32_t num_free;
  std::int32_t num_idle = 0;    ///< pages that nobody but a prefix cache refers to
  std::int32_t num_tables = 0;  ///< page tables on the pool
  std::int32_t num_caches = 0;  ///< prefix caches on the pool
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
