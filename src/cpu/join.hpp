// SPDX-License-Identifier: Apache-2.0
/// @file
/// Queries whose keys are partly in shared prefixes: what is known of them after each segment waits
/// until all segments are done and is joined by whoever is last, upper levels first, so that the
/// result does not depend on who that is.
#pragma once

#include <cstdint>

#include "cpu/tier.hpp"

namespace quire::cpu {

/// Joins the results of one call of `run`. Used by all its tasks at once.
class Join {
 public:
  /// @param states  Of queries that wait (`QueryPlace::state`): [states, num_qo_heads] rows.
  Join(const Tier& tier, const schedule::ScheduleView& schedule, const RowStates& states)
      : tier_(tier), schedule_(schedule), states_(states) {}

  /// Takes the states of a whole unit that leaves them, and writes o and lse of the queries of which
  /// nothing else is missing. Leaves counters at 0 for the next run.
  void take(const ItemTask& task) const;

 private:
  /// A query in the heads of one group.
  struct Place {
    std::int32_t listed = 0;  // the query's place in the list
    std::int32_t kv_head = 0;
    std::ptrdiff_t own_row = 0;  // the first row among the task's states
  };

  void take(const ItemTask& task, std::int32_t query, const Place& place) const;
  void keep(const ItemTask& task, std::int32_t state, const Place& place) const;
  void write(const ItemTask& task, std::int64_t token, const Place& place) const;
  /// @return The state of a listed query's keys of a level.
  [[nodiscard]] std::int32_t state_of(std::int32_t level, std::int32_t listed) const;

  const Tier& tier_;
  const schedule::ScheduleView& schedule_;
  const RowStates states_;
};

}  // namespace quire::cpu
