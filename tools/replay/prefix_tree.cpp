// SPDX-License-Identifier: Apache-2.0
#include "replay/prefix_tree.hpp"

#include <algorithm>
#include <queue>
#include <span>
#include <utility>

namespace quire::tool {

void PrefixTree::on_event(const PrefixEvent& event) noexcept {
  Page& page = pages_[static_cast<std::size_t>(event.page)];
  if (event.kind == PrefixEvent::Kind::kStored) {
    page = {event.parent, static_cast<std::int32_t>(event.tokens.size()), 0};
    ++num_pages_;
  } else {
    page = {};
    --num_pages_;
  }
}

void PrefixTree::committed(const StepPlan& plan, const PageTable& table) {
  const std::int32_t page_size = table.pool_spec().page_size;
  for (const StepItem& item : plan.items) {
    if (!item.admitted) continue;
    const auto whole = static_cast<std::size_t>(item.position / page_size);
    for (const PageId page : table.pages(item.seq).first(whole)) {
      ++pages_[static_cast<std::size_t>(page)].finds;
    }
  }
}

std::int32_t PrefixTree::num_found() const {
  return static_cast<std::int32_t>(
      std::ranges::count_if(pages_, [](const Page& p) { return p.tokens > 0 && p.finds > 0; }));
}

PrefixTree::Children PrefixTree::children() const {
  Children children;
  children.from.resize(pages_.size() + 2);
  const auto slot = [](PageId parent) { return static_cast<std::size_t>(parent + 1); };
  for (const Page& page : pages_) {
    if (page.tokens > 0) ++children.from[slot(page.parent) + 1];
  }
  for (std::size_t i = 1; i < children.from.size(); ++i) children.from[i] += children.from[i - 1];
  children.pages.resize(static_cast<std::size_t>(num_pages_));
  std::vector<std::size_t> next = children.from;
  for (std::size_t id = 0; id < pages_.size(); ++id) {
    if (pages_[id].tokens > 0) {
      children.pages[next[slot(pages_[id].parent)]++] = static_cast<PageId>(id);
    }
  }
  return children;
}

// Pages that hang on each page, itself included: children are counted before their parents.
std::vector<std::int32_t> PrefixTree::subtrees(const Children& children) const {
  const auto of = [&children](PageId parent) {
    const auto slot = static_cast<std::size_t>(parent + 1);
    return std::span(children.pages)
        .subspan(children.from[slot], children.from[slot + 1] - children.from[slot]);
  };
  std::vector<PageId> order(of(kNoPage).begin(), of(kNoPage).end());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto behind = of(order[i]);
    order.insert(order.end(), behind.begin(), behind.end());
  }
  std::vector<std::int32_t> count(pages_.size());
  for (std::size_t i = order.size(); i-- > 0;) {
    const auto id = static_cast<std::size_t>(order[i]);
    ++count[id];
    if (at(order[i]).parent != kNoPage) {
      count[static_cast<std::size_t>(at(order[i]).parent)] += count[id];
    }
  }
  return count;
}

std::vector<PrefixTree::Run> PrefixTree::runs(std::size_t most) const {
  const Children all = children();
  const std::vector<std::int32_t> subtree = subtrees(all);
  const auto size_of = [&](PageId page) { return subtree[static_cast<std::size_t>(page)]; };
  const auto behind = [&](PageId parent) {
    const auto slot = static_cast<std::size_t>(parent + 1);
    return std::span(all.pages).subspan(all.from[slot], all.from[slot + 1] - all.from[slot]);
  };
  struct Branch {
    std::int32_t size;
    std::int32_t parent;  // run
    std::int32_t position;
    PageId first;
    bool operator<(const Branch& other) const {
      return std::pair(size, -first) < std::pair(other.size, -other.first);
    }
  };
  std::priority_queue<Branch> branches;  // the largest first
  for (const PageId page : behind(kNoPage)) branches.push({size_of(page), -1, 0, page});
  std::vector<Run> runs;
  while (!branches.empty() && runs.size() < most) {
    const Branch branch = branches.top();
    branches.pop();
    Run run{branch.parent, branch.position, 0, 0, branch.size, at(branch.first).finds, 0};
    PageId last = branch.first;
    for (;;) {
      run.tokens += at(last).tokens;
      ++run.pages;
      const auto next = behind(last);
      if (next.size() != 1 || at(next[0]).finds != run.finds) break;
      last = next[0];
    }
    const auto index = static_cast<std::int32_t>(runs.size());
    for (const PageId page : behind(last)) {
      branches.push({size_of(page), index, run.position + run.tokens, page});
    }
    runs.push_back(run);
  }
  for (; !branches.empty(); branches.pop()) {
    const std::int32_t parent = branches.top().parent;
    if (parent >= 0) runs[static_cast<std::size_t>(parent)].hidden += branches.top().size;
  }
  return runs;
}

}  // namespace quire::tool
