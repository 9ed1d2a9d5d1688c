// SPDX-License-Identifier: Apache-2.0
/// @file
/// How the work of steps 03 and 04 is cut: into segments, each the queries of up to 16 requests
/// against a range of keys that all of them have.
#pragma once

#include <vector>

#include "problem.hpp"
#include "workloads.hpp"

namespace ladder {

/// Rows of q that a block holds: what the tensor cores of four warps take at once.
inline constexpr int kSegmentRows = 64;
inline constexpr int kSegmentMembers = kSegmentRows / kGroup;

/// Queries of `num_members` requests against keys [kv_begin, kv_end), which lie on the same pages
/// for all of them.
struct Segment {
  int first_member = 0;  ///< In the plan's `members`.
  int num_members = 0;   ///< 1 … kSegmentMembers.
  int kv_begin = 0;      ///< A multiple of kPageSize.
  int kv_end = 0;        ///< ≥ kv_begin; equal for a request that has nothing of its own.
  int part = 0;          ///< Where the results go: the part of these rows' results.
};

/// Segments on the host.
struct Plan {
  std::vector<Segment> segments{};
  std::vector<int> members{};    ///< Requests, segment after segment.
  std::vector<int> num_parts{};  ///< [batch]: results that a request's rows have, from part 0 on.
  int max_parts = 1;
};

/// Segments in device memory, and where their results go.
struct PlanView {
  const Segment* segments;
  const int* members;
  const int* num_parts;
  int num_segments;
  float* o;              ///< [max_parts, num_rows, d]: o of a part's keys alone
  SoftmaxState* states;  ///< [max_parts, num_rows]
};

/// Step 03: every request by itself.
Plan plan_requests(const Workload& workload);
/// Step 04: what requests share is one segment's keys for all of them.
Plan plan_shared_prefixes(const Workload& workload);

}  // namespace ladder
