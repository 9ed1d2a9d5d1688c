// SPDX-License-Identifier: Apache-2.0
// Which rows of a step begin with the same pages: groups of those with the same first page, and in each
// of them groups of those who go on with the same one, as deep as a batch takes them.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "batching/batch_builder_state.hpp"

namespace quire {
inline namespace v0 {
namespace {

using internal::BatchBuilderState;
using internal::PageTableState;

/// How long two rows are the same, from `begin` to `end` at most.
std::int32_t same_until(const PageId* a, const PageId* b, std::int32_t begin, std::int32_t end) {
  constexpr std::int32_t kAtOnce = 64;  // most groups are long, and bytes are compared fast
  while (end - begin >= kAtOnce &&
         std::memcmp(a + begin, b + begin, kAtOnce * sizeof(PageId)) == 0) {
    begin += kAtOnce;
  }
  return static_cast<std::int32_t>(std::mismatch(a + begin, a + end, b + begin).first - a);
}

/// The groups of one step.
class Groups {
 public:
  Groups(const PageTableState& table, std::span<const BatchEntry> entries,
         std::span<std::int32_t> leaders, std::span<std::int32_t> pages)
      : table_(table),
        entries_(entries),
        leaders_(leaders),
        pages_(pages),
        num_seqs_(leaders.size() / kMaxPrefixLevels) {}

  /// @param members  Entries whose rows begin with the same `depth` pages. They are put in order.
  void name(std::span<std::int32_t> members, std::int32_t depth, std::int32_t level) const {
    if (level == kMaxPrefixLevels) return;
    const auto last = std::partition(members.begin(), members.end(), [&](std::int32_t entry) {
      return num_pages(entry) > depth && ids(entry)[depth] != kNoPage;
    });
    const auto next_of = [&](std::int32_t entry) { return std::pair(ids(entry)[depth], entry); };
    std::ranges::sort(members.begin(), last, {}, next_of);
    for (auto first = members.begin(); first != last;) {
      const PageId page = ids(*first)[depth];
      const auto end =
          std::find_if(first, last, [&](std::int32_t entry) { return ids(entry)[depth] != page; });
      if (end - first > 1) name_group({first, end}, depth + 1, level);
      first = end;
    }
  }

 private:
  [[nodiscard]] std::int32_t slot(std::int32_t entry) const {
    return static_cast<std::int32_t>(entries_[static_cast<std::size_t>(entry)].seq.slot);
  }
  [[nodiscard]] const PageId* ids(std::int32_t entry) const { return table_.row(slot(entry)); }
  /// That may be shared.
  [[nodiscard]] std::int32_t num_pages(std::int32_t entry) const {
    constexpr std::int32_t kMostNewTokens = 64;  // rows of a request that may share, at one a token
    const std::int32_t new_tokens = entries_[static_cast<std::size_t>(entry)].new_tokens;
    if (new_tokens == 0 || new_tokens > kMostNewTokens) return 0;
    return (table_.at(slot(entry)).length - new_tokens) / table_.pool->spec.page_size;
  }

  /// @param group  Led by its first.
  void name_group(std::span<std::int32_t> group, std::int32_t known, std::int32_t level) const {
    const std::int32_t leader = group.front();
    std::int32_t shared = num_pages(leader);
    for (const std::int32_t entry : group.subspan(1)) {
      shared = same_until(ids(leader), ids(entry), known, std::min(shared, num_pages(entry)));
    }
    for (const std::int32_t entry : group) {
      const std::size_t at =
          static_cast<std::size_t>(level) * num_seqs_ + static_cast<std::size_t>(entry);
      leaders_[at] = leader;
      pages_[at] = shared;
    }
    name(group, shared, level + 1);
  }

  const PageTableState& table_;
  std::span<const BatchEntry> entries_;
  std::span<std::int32_t> leaders_;  // [kMaxPrefixLevels, num_seqs]
  std::span<std::int32_t> pages_;    // [kMaxPrefixLevels, num_seqs]
  std::size_t num_seqs_;
};

}  // namespace

void BatchBuilderState::find_prefixes(std::span<const BatchEntry> entries,
                                      std::span<std::int32_t> leaders,
                                      std::span<std::int32_t> pages) noexcept {
  std::ranges::fill(leaders, -1);
  std::ranges::fill(pages, 0);
  const std::span<std::int32_t> all = std::span(order).first(entries.size());
  std::iota(all.begin(), all.end(), 0);
  Groups(*table, entries, leaders, pages).name(all, 0, 0);
}

}  // namespace v0
}  // namespace quire
