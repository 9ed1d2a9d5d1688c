// SPDX-License-Identifier: Apache-2.0
// Step 04, the part without a GPU: requests whose tables begin with the same page ids.
//
// No hash and no hint from the caller: a page id names bytes, so equal ids are equal keys. Only
// whole pages count; the page that a request is writing into is its own.
#include <algorithm>
#include <numeric>

#include "plan.hpp"

namespace ladder {
namespace {

/// Keys of a prefix that a block takes: short enough that the chunks of one prompt fill a machine.
constexpr int kChunkTokens = 1024;
static_assert(kChunkTokens % kPageSize == 0, "a chunk begins with a page");

int full_pages(const RequestInfo& request) { return request.seq_len / kPageSize; }

int page_id(const Workload& workload, int request, int page) {
  const RequestInfo& info = workload.requests[static_cast<std::size_t>(request)];
  return workload.page_table[static_cast<std::size_t>(info.kv_page_start + page)];
}

/// How many of their first `at_most` pages two requests have in common.
int common_pages(const Workload& workload, int a, int b, int at_most) {
  int page = 0;
  while (page < at_most && page_id(workload, a, page) == page_id(workload, b, page)) ++page;
  return page;
}

/// Requests that share pages [0, num_pages), with num_pages = 0 for a request alone.
struct Group {
  std::vector<int> members;
  int num_pages = 0;
};

/// One level: all requests with the same first page share what all of them share.
std::vector<Group> find_groups(const Workload& workload) {
  const auto first_page = [&](int request) {
    const RequestInfo& info = workload.requests[static_cast<std::size_t>(request)];
    return full_pages(info) > 0 ? page_id(workload, request, 0) : kNoPage;
  };
  std::vector<int> order(workload.requests.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return first_page(a) < first_page(b); });

  std::vector<Group> groups;
  for (const int request : order) {
    const int pages = full_pages(workload.requests[static_cast<std::size_t>(request)]);
    const bool joins =
        !groups.empty() && pages > 0 && first_page(groups.back().members[0]) == first_page(request);
    if (!joins) {
      groups.push_back({{request}, pages});
      continue;
    }
    Group& group = groups.back();
    group.num_pages =
        common_pages(workload, group.members[0], request, std::min(group.num_pages, pages));
    group.members.push_back(request);
  }
  for (Group& group : groups) {
    if (group.members.size() == 1) group.num_pages = 0;
  }
  return groups;
}

void add_segment(Plan& plan, const std::vector<int>& members, Segment segment) {
  segment.first_member = static_cast<int>(plan.members.size());
  segment.num_members = static_cast<int>(members.size());
  plan.members.insert(plan.members.end(), members.begin(), members.end());
  plan.segments.push_back(segment);
}

/// The prefix of a group: chunk after chunk, and for each chunk 16 requests after the other.
/// @return Parts that a member's rows have then.
int add_prefix(Plan& plan, const Group& group) {
  const int tokens = group.num_pages * kPageSize;
  int part = 1;  // part 0 is what a request has alone
  for (int begin = 0; begin < tokens; begin += kChunkTokens, ++part) {
    for (std::size_t first = 0; first < group.members.size(); first += kSegmentMembers) {
      const std::size_t last = std::min(first + kSegmentMembers, group.members.size());
      const std::vector<int> members(group.members.begin() + static_cast<std::ptrdiff_t>(first),
                                     group.members.begin() + static_cast<std::ptrdiff_t>(last));
      add_segment(
          plan, members,
          {.kv_begin = begin, .kv_end = std::min(begin + kChunkTokens, tokens), .part = part});
    }
  }
  return part;
}

}  // namespace

Plan plan_requests(const Workload& workload) {
  Plan plan;
  for (int request = 0; request < static_cast<int>(workload.requests.size()); ++request) {
    const int seq_len = workload.requests[static_cast<std::size_t>(request)].seq_len;
    add_segment(plan, {request}, {.kv_begin = 0, .kv_end = seq_len, .part = 0});
  }
  plan.num_parts.assign(workload.requests.size(), 1);
  return plan;
}

Plan plan_shared_prefixes(const Workload& workload) {
  Plan plan;
  plan.num_parts.resize(workload.requests.size());
  const std::vector<Group> groups = find_groups(workload);
  for (const Group& group : groups) {  // prefixes first: the longest pieces of work
    const int num_parts = add_prefix(plan, group);
    plan.max_parts = std::max(plan.max_parts, num_parts);
    for (const int member : group.members) {
      plan.num_parts[static_cast<std::size_t>(member)] = num_parts;
    }
  }
  for (const Group& group : groups) {
    for (const int member : group.members) {
      const int seq_len = workload.requests[static_cast<std::size_t>(member)].seq_len;
      add_segment(plan, {member},
                  {.kv_begin = group.num_pages * kPageSize, .kv_end = seq_len, .part = 0});
    }
  }
  return plan;
}

}  // namespace ladder
