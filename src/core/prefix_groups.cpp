// SPDX-License-Identifier: Apache-2.0
#include "core/prefix_groups.hpp"

#include <fmt/format.h>

namespace quire::core {

std::string describe_group_offence(const CheckRecord& found) {
  switch (static_cast<CheckedItem>(found.what)) {
    case CheckedItem::kPrefixLeader:
      return fmt::format("prefix_leaders[{}][{}]: expected {}, got {}", found.position, found.seq,
                         found.bound > 0 ? fmt::format("-1 or a request in [0, {})", found.bound)
                                         : "-1, as at the level before",
                         found.value);
    case CheckedItem::kPrefixTree:
      return fmt::format(
          "prefix_leaders[{}]: expected the same for request {} and the one that "
          "leads it, on this level or a later one, got {} and {}",
          found.position, found.seq, found.bound, found.value);
    case CheckedItem::kPrefixPages:
      return fmt::format(
          "prefix_pages[{}][{}]: expected at {} {} (more than at the level before, "
          "pages that the tables have, as many as for the leader), got {}",
          found.position, found.seq, found.value < found.bound ? "least" : "most", found.bound,
          found.value);
    case CheckedItem::kPrefixPageId:
      return fmt::format(
          "page {} of request {}: expected {} as its prefix_leaders have there, got "
          "{}",
          found.position, found.seq, found.bound, found.value);
    default:
      return {};
  }
}

}  // namespace quire::core
