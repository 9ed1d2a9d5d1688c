// SPDX-License-Identifier: Apache-2.0
// What a lookup found, for as long as it is wanted.
#include <utility>

#include "cache/prefix_cache_state.hpp"
#include "quire/prefix_cache.hpp"

namespace quire {
inline namespace v0 {

using internal::kNoNode;
using internal::NodeId;

PrefixLease::PrefixLease() noexcept = default;
PrefixLease::PrefixLease(PrefixLease&& other) noexcept
    : state_(std::move(other.state_)),
      node_(std::exchange(other.node_, kNoNode)),
      num_tokens_(std::exchange(other.num_tokens_, 0)) {}
PrefixLease& PrefixLease::operator=(PrefixLease&& other) noexcept {
  if (this == &other) return *this;
  release();
  state_ = std::move(other.state_);
  node_ = std::exchange(other.node_, kNoNode);
  num_tokens_ = std::exchange(other.num_tokens_, 0);
  return *this;
}
PrefixLease::~PrefixLease() { release(); }

void PrefixLease::release() noexcept {
  if (node_ != kNoNode) {
    --state_->node(node_).leases;
    --state_->stats.leases;
  }
  node_ = kNoNode;
  num_tokens_ = 0;
  state_.reset();
}

std::int32_t PrefixLease::num_pages() const noexcept {
  if (node_ == kNoNode) return 0;
  const std::int32_t page_size = state_->page_size();
  return num_tokens_ / page_size + (num_tokens_ % page_size != 0 ? 1 : 0);
}

void PrefixLease::copy_pages(std::span<PageId> pages) const noexcept {
  NodeId id = node_;
  for (auto index = static_cast<std::size_t>(num_pages()); index-- > 0;) {
    if (index < pages.size()) pages[index] = state_->node(id).page;
    id = state_->node(id).parent;
  }
}

std::uint64_t PrefixLease::pending() const noexcept {
  for (NodeId id = node_; id != kNoNode; id = state_->node(id).parent) {
    if (!state_->is_written(state_->node(id))) {
      return state_->transfers[static_cast<std::size_t>(state_->node(id).page)].ticket;
    }
  }
  return 0;
}

}  // namespace v0
}  // namespace quire
