// SPDX-License-Identifier: Apache-2.0
/// @file
/// The tree of a prefix cache as its listener hears of it, and how often each page was found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "quire/batcher.hpp"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"

namespace quire::tool {

class PrefixTree : public PrefixListener {
 public:
  /// Pages behind one another that nothing branches from, of one tier, found equally often.
  struct Run {
    std::int32_t parent = -1;   ///< Index of the run before it, which is in the list too; −1: none.
    std::int32_t position = 0;  ///< Tokens before it.
    std::int32_t tokens = 0;
    std::int32_t pages = 0;
    std::int32_t subtree = 0;  ///< Its pages and those of all that hang on it.
    std::int32_t finds = 0;    ///< Admissions that began with it.
    std::int32_t on_host = 0;  ///< 1 if its pages are.
    std::int32_t hidden = 0;   ///< Pages of the subtree in branches that are not in the list.
  };

  /// @param num_host_pages  0 without a host tier.
  PrefixTree(std::int32_t num_pages, std::int32_t num_host_pages)
      : node_of_{std::vector<std::int32_t>(static_cast<std::size_t>(num_pages), kNone),
                 std::vector<std::int32_t>(static_cast<std::size_t>(num_host_pages), kNone)} {}

  void on_event(const PrefixEvent& event) noexcept override;
  /// After the commit of a plan: the admitted begin with pages of the cache.
  void committed(const StepPlan& plan, const PageTable& table);

  /// @param most  Of runs: of a larger tree those with the largest subtrees.
  /// @return Parents before their children, of siblings the largest subtree first.
  [[nodiscard]] std::vector<Run> runs(std::size_t most) const;
  [[nodiscard]] std::int32_t num_pages() const {
    return count([](const Node&) { return true; });
  }
  [[nodiscard]] std::int32_t num_host_pages() const {
    return count([](const Node& node) { return node.tier == PageTier::kHost; });
  }
  /// @return Pages that an admission has found since they are in the cache.
  [[nodiscard]] std::int32_t num_found() const {
    return count([](const Node& node) { return node.finds > 0; });
  }

 private:
  static constexpr std::int32_t kNone = -1;
  struct Node {
    std::int32_t parent = kNone;
    std::int32_t tokens = 0;  // 0: nobody's
    std::int32_t finds = 0;
    PageTier tier = PageTier::kDevice;
  };
  /// What hangs on what: the children of a node are next to one another.
  struct Children {
    std::vector<std::int32_t> nodes;
    std::vector<std::size_t> from;  // by parent + 1; one more at the end

    [[nodiscard]] std::span<const std::int32_t> of(std::int32_t parent) const;
  };

  template <typename Predicate>
  [[nodiscard]] std::int32_t count(Predicate holds) const {
    std::int32_t found = 0;
    for (const Node& node : nodes_) found += node.tokens > 0 && holds(node) ? 1 : 0;
    return found;
  }
  [[nodiscard]] const Node& at(std::int32_t node) const {
    return nodes_[static_cast<std::size_t>(node)];
  }
  [[nodiscard]] std::int32_t& node_of(PageTier tier, PageId page) {
    return node_of_[static_cast<std::size_t>(tier)][static_cast<std::size_t>(page)];
  }
  [[nodiscard]] std::int32_t add(const Node& node);
  void release(std::int32_t node);
  [[nodiscard]] Children children() const;
  [[nodiscard]] std::vector<std::int32_t> subtrees(const Children& children) const;

  std::vector<std::int32_t> node_of_[2];  // by tier and page
  std::vector<Node> nodes_;
  std::vector<std::int32_t> unused_;
  std::int32_t last_stored_ = kNone;  // by the event before, if it stored a page
  PageId last_page_ = kNoPage;
  std::vector<std::int32_t> last_tokens_;
};

}  // namespace quire::tool
