// SPDX-License-Identifier: Apache-2.0
/// @file
/// Finds a request's slot by its id without ever allocating after construction.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace quire::batching {

/// A hash table of at most `max_requests` ids: linear probing in a table at most half full, and
/// deletion that closes the gap, so that it never ages.
class RequestIndex {
 public:
  static constexpr std::int32_t kNobody = -1;
  static constexpr std::size_t kEntryBytes = 16;  ///< of which there are 2 to 4 a request

  explicit RequestIndex(std::int32_t max_requests)
      : entries_(std::bit_ceil(2 * static_cast<std::size_t>(max_requests))),
        mask_(entries_.size() - 1) {}

  /// @return The slot of an id, else `kNobody`.
  [[nodiscard]] std::int32_t find(std::uint64_t id) const noexcept {
    return entries_[place_of(id)].slot;
  }

  /// Adds an id that is not there. The caller sees to it that there are at most `max_requests`.
  void insert(std::uint64_t id, std::int32_t slot) noexcept { entries_[place_of(id)] = {id, slot}; }

  /// Removes an id that is there. Whoever was pushed beyond the gap by it moves up.
  void erase(std::uint64_t id) noexcept {
    std::size_t gap = place_of(id);
    for (std::size_t i = next(gap); entries_[i].slot != kNobody; i = next(i)) {
      const std::size_t pushed = (i - home_of(entries_[i].id)) & mask_;
      if (pushed < ((i - gap) & mask_)) continue;  // its home lies behind the gap
      entries_[gap] = entries_[i];
      gap = i;
    }
    entries_[gap] = {};
  }

 private:
  struct Entry {
    std::uint64_t id = 0;
    std::int32_t slot = kNobody;
  };
  static_assert(sizeof(Entry) == kEntryBytes);

  [[nodiscard]] std::size_t next(std::size_t place) const noexcept { return (place + 1) & mask_; }
  // Ids are often counters or multiples: the upper half of a product spreads both.
  [[nodiscard]] std::size_t home_of(std::uint64_t id) const noexcept {
    constexpr std::uint64_t kGoldenRatio = 0x9e3779b97f4a7c15ULL;
    constexpr int kHalf = 32;
    return static_cast<std::size_t>((id * kGoldenRatio) >> kHalf) & mask_;
  }
  // Where the id is, or where it would go.
  [[nodiscard]] std::size_t place_of(std::uint64_t id) const noexcept {
    std::size_t place = home_of(id);
    while (entries_[place].slot != kNobody && entries_[place].id != id) place = next(place);
    return place;
  }

  std::vector<Entry> entries_;
  std::size_t mask_;
};

}  // namespace quire::batching
