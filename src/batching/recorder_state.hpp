// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a `Recorder` holds: three rings of records, and the requests that have not ended.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batching/request_index.hpp"
#include "quire/recorder.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

/// The newest records. They are numbered from 0 on, the displaced ones included.
template <typename T>
class Ring {
 public:
  explicit Ring(std::int32_t capacity) : capacity_(static_cast<std::size_t>(capacity)) {
    records_.reserve(capacity_);  // pages of memory are touched only as records come
  }

  /// @return The number of the new record.
  std::uint64_t push(const T& record) noexcept {
    if (records_.size() < capacity_) {
      records_.push_back(record);
    } else {
      records_[next_] = record;
    }
    if (++next_ == capacity_) next_ = 0;
    return pushed_++;
  }
  /// @return A record by its number; null once it is displaced.
  [[nodiscard]] T* find(std::uint64_t number) noexcept {
    const std::uint64_t back = pushed_ - number;  // places behind the next one; no division
    if (number >= pushed_ || back > records_.size()) return nullptr;
    const auto places = static_cast<std::size_t>(back);
    return &records_[next_ >= places ? next_ - places : next_ + capacity_ - places];
  }
  [[nodiscard]] Records<T> view() const noexcept {
    const std::span<const T> all = records_;
    const std::size_t oldest = records_.size() < capacity_ ? 0 : next_;
    return {all.subspan(oldest), all.first(oldest)};
  }
  [[nodiscard]] std::int64_t displaced() const noexcept {
    return static_cast<std::int64_t>(pushed_ - records_.size());
  }

 private:
  std::size_t capacity_;
  std::vector<T> records_;
  std::size_t next_ = 0;  ///< where the next record goes
  std::uint64_t pushed_ = 0;
};

struct RecorderState {
  static constexpr std::int32_t kNobody = batching::RequestIndex::kNobody;
  static constexpr std::uint64_t kNoEvent = ~std::uint64_t{0};

  /// A request that has not ended.
  struct Life {
    RequestRecord record;
    double last_token = 0.0;          ///< NaN before the first one seen
    std::uint64_t decode = kNoEvent;  ///< its event that goes on if it decodes in the next step
    std::int32_t cached = 0;          ///< tokens
    bool stopped = false;             ///< what it samples from now on does not count
    std::int32_t next_free = kNobody;
    /// Further samples of its prompt that have not begun, in their order; of such a one: the next, and
    /// the one before or the request itself.
    std::int32_t next_sample = kNobody;
    std::int32_t prev_sample = kNobody;
  };
  /// A share of a step in flight.
  struct Share {
    std::int32_t slot = kNobody;
    std::uint64_t event = kNoEvent;
    bool samples = false;
  };

  /// A step that was committed and is not finished.
  struct Flight {
    std::vector<Share> shares;
    std::uint64_t step = 0;
    std::uint64_t record = kNoEvent;  ///< number of its record; `kNoEvent` if nothing flies here
  };

  explicit RecorderState(const RecorderSpec& recorder_spec);

  [[nodiscard]] Life& at(std::int32_t slot) noexcept {
    return lives[static_cast<std::size_t>(slot)];
  }
  /// @return A new life, of which nothing is known but its id; `kNobody` if there are too many.
  std::int32_t begin_life(std::uint64_t request) noexcept;
  /// @return The life of a request, begun here if the recorder has not seen it before.
  std::int32_t find_or_begin(std::uint64_t request) noexcept;

  void preempt(std::uint64_t request, std::uint64_t step, double time) noexcept;
  void take_part(const StepItem& item, StepRecord& record, Flight& flight) noexcept;
  /// @return The older of the steps in flight; null if there is none.
  [[nodiscard]] Flight* oldest_flight() noexcept;
  void complete(const Share& share, double time) noexcept;
  void note_token(Life& life, double time) noexcept;
  void unlink_sample(Life& life) noexcept;
  void end(std::uint64_t request, double time) noexcept;

  RecorderSpec spec;
  Ring<RequestEvent> events;
  Ring<StepRecord> steps;
  Ring<RequestRecord> ended;
  batching::RequestIndex index;
  std::vector<Life> lives;
  std::int32_t first_free = kNobody;  ///< of the lives that were ended; the rest is unused yet
  std::array<Flight, 2> flights;      ///< each at the parity of its number
  std::uint64_t next_step = 0;        ///< one more than the last one that was committed
  std::int64_t cached_tokens = 0;     ///< of all lives
  std::int64_t untracked_events = 0;
  std::int64_t untracked_ends = 0;

 private:
  std::uint64_t add_compute(Life& life, const StepItem& item, const StepRecord& record) noexcept;
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
