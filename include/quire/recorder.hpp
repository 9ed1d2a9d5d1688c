// SPDX-License-Identifier: Apache-2.0
/// @file
/// `Recorder`: what the steps of a `Batcher` did, kept in a bounded memory for timelines, latencies
/// and reports.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>

#include "quire/batcher.hpp"
#include "quire/export.h"

namespace quire {
inline namespace v0 {

/// What happens to a request.
enum class EventKind : std::uint8_t {
  kSubmit,   ///< It began to wait. `num_tokens`: of its prompt.
  kAdmit,    ///< It got its first pages, or got pages again. `num_tokens`: found in them.
  kPrefill,  ///< A chunk of its known tokens was computed.
  kDecode,   ///< The tokens that it sampled last were computed, in steps one after the other.
  kPreempt,  ///< It lost its pages. `num_tokens`: cached tokens that were thrown away.
  kFinish,   ///< It ended. `num_tokens`: sampled in its whole life.
};

/// @return The enumerator's name in words, e.g. `"prefill"`.
QUIRE_API std::string_view to_string(EventKind kind) noexcept;

/// Something that happened to a request at a time, or for some time. Times are the caller's.
struct RequestEvent {
  std::uint64_t request = 0;     ///< `Request::id`.
  std::uint64_t first_step = 0;  ///< Number of the step; before the first one also 0.
  std::uint64_t last_step = 0;   ///< Another one only for `kDecode`.
  double begin = 0.0;            ///< When the first step was committed.
  double end = 0.0;             ///< When the last step was finished; `begin` of what takes no time.
  std::int32_t position = 0;    ///< Of the first token.
  std::int32_t num_tokens = 0;  ///< See `EventKind`; else those computed.
  EventKind kind = EventKind::kSubmit;  ///< What happened.
};

/// What a step was made of, and the state that it left.
struct StepRecord {
  std::uint64_t step = 0;           ///< `StepPlan::step`.
  double begin = 0.0;               ///< When it was committed.
  double end = 0.0;                 ///< When it was finished; `begin` while it is in flight.
  std::int64_t cached_tokens = 0;   ///< Of all running requests, those of this step included.
  std::int32_t prefill_tokens = 0;  ///< Computed in prefill.
  std::int32_t decode_tokens = 0;   ///< Computed in decode.
  std::int32_t reused_tokens = 0;   ///< The admitted found them in cache.
  std::int32_t num_prefills = 0;    ///< Requests that prefill.
  std::int32_t num_decodes = 0;     ///< Requests that decode.
  std::int32_t num_admitted = 0;    ///< Requests, the ones admitted again included.
  std::int32_t num_preempted = 0;   ///< Requests.
  std::int32_t num_ended = 0;       ///< Requests.
  std::int32_t waiting = 0;         ///< Requests without pages, after the commit.
  std::int32_t running = 0;         ///< Requests with pages, after the commit.
  std::int32_t used_pages = 0;      ///< Of the pool, by whomever, after the commit.
};

/// The life of a request that has ended. A time that the recorder did not see is NaN.
struct RequestRecord {
  std::uint64_t request = 0;           ///< `Request::id`.
  double submitted = 0.0;              ///< When it began to wait.
  double admitted = 0.0;               ///< When it first got pages.
  double first_token = 0.0;            ///< When the step that sampled its first token was finished.
  double finished = 0.0;               ///< When its last step was finished.
  double longest_gap = 0.0;            ///< Between two of its tokens; 0 if it has fewer than two.
  std::int32_t prompt_tokens = 0;      ///< 0 if the recorder did not see the submission.
  std::int32_t new_tokens = 0;         ///< Sampled.
  std::int32_t num_preemptions = 0;    ///< Times that it lost its pages.
  std::int32_t recomputed_tokens = 0;  ///< Cached tokens that this threw away.
  std::int32_t reused_tokens = 0;      ///< Found in cache at its admissions.

  /// @return From submission to the first token; NaN if unknown.
  [[nodiscard]] double time_to_first_token() const noexcept { return first_token - submitted; }
  /// @return Between two tokens, on average; NaN for fewer than two.
  [[nodiscard]] double time_per_token() const noexcept {
    if (new_tokens < 2) return std::numeric_limits<double>::quiet_NaN();
    return (finished - first_token) / (new_tokens - 1);
  }
};

/// How much a recorder keeps.
struct RecorderSpec {
  std::int32_t max_events = 1 << 18;  ///< ≥ 1; about 7 a request.
  std::int32_t max_steps = 1 << 16;   ///< ≥ 1.
  std::int32_t max_ended = 1 << 16;   ///< Requests that have ended, ≥ 1.
  /// Waiting and running, ≥ 1: as `BatcherSpec::max_requests`.
  std::int32_t max_requests = 65536;

  /// Equal in every field.
  friend bool operator==(const RecorderSpec&, const RecorderSpec&) = default;
};

/// What a recorder no longer has, or never had. Nothing is lost without being counted here.
struct RecorderLosses {
  std::int64_t events = 0;  ///< Displaced by newer ones, or of requests that were not tracked.
  std::int64_t steps = 0;   ///< Displaced by newer ones.
  std::int64_t ended = 0;   ///< Displaced by newer ones, or of requests that were not tracked.

  /// Equal in every field.
  friend bool operator==(const RecorderLosses&, const RecorderLosses&) = default;
};

/// Records in the order in which they were made, oldest first. A view of the recorder's own memory:
/// valid until its next call.
template <typename T>
class Records {
 public:
  /// No records.
  Records() noexcept = default;
  /// Two stretches of memory, the older one first.
  Records(std::span<const T> older, std::span<const T> newer) noexcept
      : older_(older), newer_(newer) {}

  /// @return Number of records. O(1).
  [[nodiscard]] std::size_t size() const noexcept { return older_.size() + newer_.size(); }
  /// @return True if there is none. O(1).
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  /// @return The record with this index, unchecked: 0 is the oldest. O(1).
  const T& operator[](std::size_t index) const noexcept {
    return index < older_.size() ? older_[index] : newer_[index - older_.size()];
  }
  /// @return The newest record; there must be one. O(1).
  [[nodiscard]] const T& back() const noexcept { return (*this)[size() - 1]; }

 private:
  std::span<const T> older_;
  std::span<const T> newer_;
};

namespace internal {
struct RecorderState;
}

/// Records what a `Batcher` did. Each call follows the one of the batcher that it is named after,
/// once that has succeeded:
///
///     submit → submitted;  commit → committed;  finish → finished;  cancel → cancelled
///
/// Time is a number that the caller passes, of any unit, measured or simulated; it should not go
/// backwards. When a kind of record is full, the oldest makes room and is counted in `losses()`.
/// Decodes of a request in successive steps share an event, so that a request takes about seven
/// events however much it generates. A recorder may be attached to a batcher at any time between
/// steps: of requests submitted before, the submission is unknown.
///
/// No call but the constructor allocates or fails. One owner: calls must not overlap in time.
/// Movable, not copyable; a moved-from recorder may only be destroyed or assigned to.
class QUIRE_API Recorder {
 public:
  /// A recorder without records. Takes all memory at once, which the system backs as it is used:
  /// 56 bytes an event, 80 a step, 72 an ended request, at most 224 one that has not ended.
  /// @throws Error `kInvalidArgument` (the spec is out of range), `kOutOfMemory`.
  explicit Recorder(const RecorderSpec& spec = {});
  Recorder(Recorder&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  Recorder& operator=(Recorder&&) noexcept;  ///< Likewise.
  ~Recorder();

  /// @return The spec that it was made with. O(1).
  [[nodiscard]] const RecorderSpec& spec() const noexcept;

  /// The batcher has accepted a request, and its further samples. O(1) each.
  /// @param time  Since when it waits: now, or its arrival.
  void submitted(const Request& request, double time) noexcept;
  /// The batcher has committed a plan: its step begins. O(items + preempted).
  /// @param stats  The batcher's, after the commit.
  void committed(const StepPlan& plan, const BatcherStats& stats, double time) noexcept;
  /// The batcher has ended a cancelled request at once. (One that takes part in a step in flight is
  /// among those that `finished` is told of.) O(1).
  void cancelled(std::uint64_t request, double time) noexcept;
  /// The batcher has finished its oldest step: it ends. O(items + ended).
  /// @param ended  What `Batcher::finish` wrote for this step.
  void finished(std::span<const std::uint64_t> ended, double time) noexcept {
    finished(ended, {}, time);
  }
  /// Likewise, where steps are planned ahead: what the stopped sample in later ones does not count.
  /// @param stopped  What `Batcher::finish` was given.
  void finished(std::span<const std::uint64_t> ended, std::span<const std::uint64_t> stopped,
                double time) noexcept;

  /// @return What happened to requests, by the time at which it began. O(1).
  [[nodiscard]] Records<RequestEvent> events() const noexcept;
  /// @return The steps. O(1).
  [[nodiscard]] Records<StepRecord> steps() const noexcept;
  /// @return The requests that have ended, in the order of their end. O(1).
  [[nodiscard]] Records<RequestRecord> ended() const noexcept;
  /// @return What is missing in them. O(1).
  [[nodiscard]] RecorderLosses losses() const noexcept;

 private:
  std::unique_ptr<internal::RecorderState> state_;
};

}  // namespace v0
}  // namespace quire
