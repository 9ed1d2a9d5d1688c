// SPDX-License-Identifier: Apache-2.0
#include "replay/prefix_tree.hpp"

#include <algorithm>
#include <queue>
#include <span>
#include <utility>

namespace quire::tool {

std::span<const std::int32_t> PrefixTree::Children::of(std::int32_t parent) const {
  const auto slot = static_cast<std::size_t>(parent + 1);
  return std::span(nodes).subspan(from[slot], from[slot + 1] - from[slot]);
}

std::int32_t PrefixTree::add(const Node& node) {
  if (unused_.empty()) {
    nodes_.push_back(node);
    return static_cast<std::int32_t>(nodes_.size() - 1);
  }
  const std::int32_t index = unused_.back();
  unused_.pop_back();
  nodes_[static_cast<std::size_t>(index)] = node;
  return index;
}

void PrefixTree::release(std::int32_t node) {
  nodes_[static_cast<std::size_t>(node)] = {};
  unused_.push_back(node);
}

// A page that moves comes into the other tier, then leaves this one: what hangs on it stays with it, and
// how often it was found.
void PrefixTree::on_event(const PrefixEvent& event) noexcept {
  if (event.kind == PrefixEvent::Kind::kStored) {
    const std::int32_t parent =
        event.parent == kNoPage ? kNone : node_of(event.parent_tier, event.parent);
    last_stored_ = add({parent, static_cast<std::int32_t>(event.tokens.size()), 0, event.tier});
    last_page_ = event.page;
    last_tokens_.assign(event.tokens.begin(), event.tokens.end());
    node_of(event.tier, event.page) = last_stored_;
    return;
  }
  const std::int32_t node = std::exchange(node_of(event.tier, event.page), kNone);
  const std::int32_t stored = std::exchange(last_stored_, kNone);
  const bool moved = stored != kNone && at(stored).tier != event.tier &&
                     at(stored).parent == at(node).parent &&
                     std::ranges::equal(last_tokens_, event.tokens);
  if (moved) {
    const PageTier tier = at(stored).tier;
    nodes_[static_cast<std::size_t>(node)].tier = tier;
    node_of(tier, last_page_) = node;
    release(stored);
  } else {
    release(node);
  }
}

void PrefixTree::committed(const StepPlan& plan, const PageTable& table) {
  const std::int32_t page_size = table.pool_spec().page_size;
  for (const StepItem& item : plan.items) {
    if (!item.admitted) continue;
    const auto whole = static_cast<std::size_t>(item.position / page_size);
    for (const PageId page : table.pages(item.seq).first(whole)) {
      const std::int32_t node = node_of(PageTier::kDevice, page);
      if (node != kNone) ++nodes_[static_cast<std::size_t>(node)].finds;
    }
  }
}

PrefixTree::Children PrefixTree::children() const {
  Children children;
  children.from.resize(nodes_.size() + 2);
  const auto slot = [](std::int32_t parent) { return static_cast<std::size_t>(parent + 1); };
  for (const Node& node : nodes_) {
    if (node.tokens > 0) ++children.from[slot(node.parent) + 1];
  }
  for (std::size_t i = 1; i < children.from.size(); ++i) children.from[i] += children.from[i - 1];
  children.nodes.resize(children.from.back());
  std::vector<std::size_t> next = children.from;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].tokens > 0) {
      children.nodes[next[slot(nodes_[i].parent)]++] = static_cast<std::int32_t>(i);
    }
  }
  return children;
}

// Pages that hang on each node, itself included: children are counted before their parents.
std::vector<std::int32_t> PrefixTree::subtrees(const Children& children) const {
  std::vector<std::int32_t> order(children.of(kNone).begin(), children.of(kNone).end());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto behind = children.of(order[i]);
    order.insert(order.end(), behind.begin(), behind.end());
  }
  std::vector<std::int32_t> count(nodes_.size());
  for (std::size_t i = order.size(); i-- > 0;) {
    const std::int32_t own = ++count[static_cast<std::size_t>(order[i])];
    const std::int32_t parent = at(order[i]).parent;
    if (parent != kNone) count[static_cast<std::size_t>(parent)] += own;
  }
  return count;
}

std::vector<PrefixTree::Run> PrefixTree::runs(std::size_t most) const {
  const Children all = children();
  const std::vector<std::int32_t> subtree = subtrees(all);
  const auto size_of = [&](std::int32_t node) { return subtree[static_cast<std::size_t>(node)]; };
  struct Branch {
    std::int32_t size;
    std::int32_t parent;  // run
    std::int32_t position;
    std::int32_t first;  // node
    bool operator<(const Branch& other) const {
      return std::pair(size, -first) < std::pair(other.size, -other.first);
    }
  };
  std::priority_queue<Branch> branches;  // the largest first
  for (const std::int32_t node : all.of(kNone)) branches.push({size_of(node), kNone, 0, node});
  std::vector<Run> runs;
  while (!branches.empty() && runs.size() < most) {
    const Branch branch = branches.top();
    branches.pop();
    const Node& first = at(branch.first);
    Run run{branch.parent,
            branch.position,
            0,
            0,
            branch.size,
            first.finds,
            first.tier == PageTier::kHost ? 1 : 0,
            0};
    std::int32_t last = branch.first;
    for (;;) {
      run.tokens += at(last).tokens;
      ++run.pages;
      const auto next = all.of(last);
      if (next.size() != 1 || at(next[0]).finds != run.finds || at(next[0]).tier != first.tier) {
        break;
      }
      last = next[0];
    }
    const auto index = static_cast<std::int32_t>(runs.size());
    for (const std::int32_t node : all.of(last)) {
      branches.push({size_of(node), index, run.position + run.tokens, node});
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
