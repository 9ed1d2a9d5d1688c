// SPDX-License-Identifier: Apache-2.0
/// @file
/// The tree of a prefix cache as its listener hears of it, and how often each page was found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quire/batcher.hpp"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"

namespace quire::tool {

class PrefixTree : public PrefixListener {
 public:
  /// Pages behind one another that nothing branches from and that were found equally often.
  struct Run {
    std::int32_t parent = -1;   ///< Index of the run before it, which is in the list too; −1: none.
    std::int32_t position = 0;  ///< Tokens before it.
    std::int32_t tokens = 0;
    std::int32_t pages = 0;
    std::int32_t subtree = 0;  ///< Its pages and those of all that hang on it.
    std::int32_t finds = 0;    ///< Admissions that began with it.
    std::int32_t hidden = 0;   ///< Pages of the subtree in branches that are not in the list.
  };

  explicit PrefixTree(std::int32_t num_pages) : pages_(static_cast<std::size_t>(num_pages)) {}

  void on_event(const PrefixEvent& event) noexcept override;
  /// After the commit of a plan: the admitted begin with pages of the cache.
  void committed(const StepPlan& plan, const PageTable& table);

  /// @param most  Of runs: of a larger tree those with the largest subtrees.
  /// @return Parents before their children, of siblings the largest subtree first.
  [[nodiscard]] std::vector<Run> runs(std::size_t most) const;
  [[nodiscard]] std::int32_t num_pages() const { return num_pages_; }
  /// @return Pages that an admission has found since they are in the cache.
  [[nodiscard]] std::int32_t num_found() const;

 private:
  struct Page {
    PageId parent = kNoPage;
    std::int32_t tokens = 0;  // 0: not in the cache
    std::int32_t finds = 0;
  };
  /// What hangs on what: the pages of a parent are next to one another.
  struct Children {
    std::vector<PageId> pages;
    std::vector<std::size_t> from;  // by parent + 1; one more at the end
  };

  [[nodiscard]] const Page& at(PageId page) const { return pages_[static_cast<std::size_t>(page)]; }
  [[nodiscard]] Children children() const;
  [[nodiscard]] std::vector<std::int32_t> subtrees(const Children& children) const;

  std::vector<Page> pages_;
  std::int32_t num_pages_ = 0;
};

}  // namespace quire::tool
