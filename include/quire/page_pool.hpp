// SPDX-License-Identifier: Apache-2.0
/// @file
/// `PagePool`: which pages of a KV cache are free, and how many references hold each of the others.
/// It knows page ids only; the cache itself is the caller's tensor.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "quire/error.hpp"
#include "quire/export.h"

namespace quire {
inline namespace v0 {

/// A physical page: an index into the first axis of the cache.
using PageId = std::int32_t;
inline constexpr PageId kNoPage = -1;  ///< No page; pads dense page tables.

/// How large a pool is.
struct PagePoolSpec {
  std::int32_t num_pages = 0;   ///< Pages of the cache, ≥ 1.
  std::int32_t page_size = 16;  ///< Tokens per page, ≥ 1.

  /// Equal in every field.
  friend bool operator==(const PagePoolSpec&, const PagePoolSpec&) = default;
};

namespace internal {
struct PagePoolState;
struct TestAccess;
}  // namespace internal

/// Hands out pages and counts the references to them. A page is free, or has references held by
/// callers (through this class), by page tables, by prefix caches and by their copies in flight. One owner: calls must not overlap in time.
/// All memory is taken at construction; every call is all-or-nothing; pages come in a fixed order.
/// Movable, not copyable; a moved-from pool may only be destroyed or assigned to.
class QUIRE_API PagePool {
 public:
  /// A pool whose pages are all free. O(num_pages).
  /// @throws Error `kInvalidArgument` (the spec is out of range), `kOutOfMemory`.
  explicit PagePool(const PagePoolSpec& spec);
  PagePool(PagePool&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  PagePool& operator=(PagePool&&) noexcept;  ///< Likewise.
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;
  ~PagePool();

  /// @return The spec that it was made with. O(1).
  [[nodiscard]] const PagePoolSpec& spec() const noexcept;
  /// @return Pages that nothing refers to. O(1).
  [[nodiscard]] std::int32_t num_free() const noexcept;
  /// @return Pages that something refers to. O(1).
  [[nodiscard]] std::int32_t num_used() const noexcept;
  /// @return References to a page, those of tables, caches and copies in flight included; 0 for a free page and for an id that
  ///   the pool does not have. O(1).
  [[nodiscard]] std::int32_t ref_count(PageId page) const noexcept;

  /// Fills `pages` with free pages, each with one reference, held by the caller. O(pages).
  /// @return `kOutOfPages` if there are fewer; `pages` is untouched then.
  Status allocate(std::span<PageId> pages) noexcept;

  /// Adds a reference of the caller to each page in use, once per occurrence. O(pages).
  /// @return `kBadHandle` if a page is free or unknown; nothing was changed then.
  Status retain(std::span<const PageId> pages) noexcept;
  /// Likewise, of one page.
  Status retain(PageId page) noexcept { return retain(std::span<const PageId>(&page, 1)); }

  /// Takes back a reference of the caller from each page, once per occurrence; a page without
  /// references is free. References of tables and caches cannot be released here. O(pages).
  /// @return `kBadHandle` if the caller does not hold that many references to a page (a second
  ///   release, say) or the id is unknown; nothing was changed then.
  Status release(std::span<const PageId> pages) noexcept;
  /// Likewise, of one page.
  Status release(PageId page) noexcept { return release(std::span<const PageId>(&page, 1)); }

  /// Recomputes what must always hold: each page is either free, and on the free list once, or has
  /// references; the counters add up. O(num_pages). Allocates a bit for each page.
  /// @return `kInternal` with the first violation, `kOutOfMemory`.
  [[nodiscard]] Status check() const noexcept;

 private:
  friend struct internal::TestAccess;
  friend class PageTable;
  friend class PrefixCache;

  std::shared_ptr<internal::PagePoolState> state_;  // shared with the tables and caches on it
};

}  // namespace v0
}  // namespace quire
