// SPDX-License-Identifier: Apache-2.0
/// @file
/// Pages in the order of a key, for eviction: a binary heap that knows where each page is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "quire/page_pool.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

/// A page's key may grow without the heap hearing of it: a key in the heap is a lower bound, brought
/// up to date (`raise_top`) when its page comes to the top. All memory is taken at construction.
///
/// Pages at the top can be set aside (`set_top_aside`) and come back with `put_back`: they wait behind the
/// heap in the same array.
class PageHeap {
 public:
  struct Entry {
    std::uint64_t key = 0;
    PageId page = kNoPage;
  };
  static constexpr std::int32_t kAbsent = -1;

  explicit PageHeap(std::int32_t num_pages)
      : entries_(static_cast<std::size_t>(num_pages)),
        position_(static_cast<std::size_t>(num_pages), kAbsent) {}

  [[nodiscard]] std::int32_t size() const noexcept { return size_; }
  [[nodiscard]] std::int32_t num_aside() const noexcept { return aside_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] bool contains(PageId page) const noexcept {
    return position_[static_cast<std::size_t>(page)] != kAbsent;
  }
  [[nodiscard]] const Entry& top() const noexcept { return entries_[0]; }
  /// @return The entry at a position of the array; those set aside from `size()` on.
  [[nodiscard]] const Entry& at(std::int32_t position) const noexcept {
    return entries_[static_cast<std::size_t>(position)];
  }
  /// @return Where a page is, or `kAbsent`.
  [[nodiscard]] std::int32_t position(PageId page) const noexcept {
    return position_[static_cast<std::size_t>(page)];
  }

  /// Takes in a page that is not there.
  void push(PageId page, std::uint64_t key) noexcept {
    if (aside_ > 0) place(size_ + aside_, at(size_));  // the first of those set aside makes room
    place(size_, {key, page});
    sift_up(size_++);
  }

  /// Takes out a page if it is there, set aside or not.
  void remove(PageId page) noexcept {
    const std::int32_t hole = position(page);
    if (hole == kAbsent) return;
    position_[static_cast<std::size_t>(page)] = kAbsent;
    if (hole >= size_) {
      fill_aside(hole);
      return;
    }
    const Entry last = at(--size_);
    if (hole != size_) {
      place(hole, last);
      sift_down(sift_up(hole));
    }
    if (aside_ > 0) place(size_, at(size_ + aside_));
  }

  /// Brings the key of the top up to date. It must not be less than it was.
  void raise_top(std::uint64_t key) noexcept {
    entries_[0].key = key;
    sift_down(0);
  }

  /// Sets the top aside.
  void set_top_aside() noexcept {
    const Entry entry = top();
    const std::int32_t last = --size_;
    place(0, at(last));
    place(last, entry);
    ++aside_;
    if (size_ > 0) sift_down(0);
  }

  /// Puts back what was set aside.
  void put_back() noexcept {
    for (; aside_ > 0; --aside_) sift_up(size_++);
  }

 private:
  void place(std::int32_t position, Entry entry) noexcept {
    entries_[static_cast<std::size_t>(position)] = entry;
    position_[static_cast<std::size_t>(entry.page)] = position;
  }
  void fill_aside(std::int32_t hole) noexcept {
    --aside_;
    if (hole != size_ + aside_) place(hole, at(size_ + aside_));
  }
  std::int32_t sift_up(std::int32_t position) noexcept {
    const Entry entry = at(position);
    while (position > 0) {
      const std::int32_t parent = (position - 1) / 2;
      if (at(parent).key <= entry.key) break;
      place(position, at(parent));
      position = parent;
    }
    place(position, entry);
    return position;
  }
  void sift_down(std::int32_t position) noexcept {
    const Entry entry = at(position);
    for (std::int32_t child = 2 * position + 1; child < size_; child = 2 * position + 1) {
      if (child + 1 < size_ && at(child + 1).key < at(child).key) ++child;
      if (entry.key <= at(child).key) break;
      place(position, at(child));
      position = child;
    }
    place(position, entry);
  }

  std::vector<Entry> entries_;          // the heap, then what is set aside
  std::vector<std::int32_t> position_;  // by page
  std::int32_t size_ = 0;
  std::int32_t aside_ = 0;
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
