// SPDX-License-Identifier: Apache-2.0
// The tree of a prefix cache: finding nodes, putting them in and taking them out.
#include <algorithm>
#include <array>
#include <cstring>

#include "cache/prefix_cache_state.hpp"
#include "cache/prefix_hash.hpp"

namespace quire {
inline namespace v0 {
namespace internal {
namespace {

using cache::hash_root;
using cache::hash_run;

// The hashes of a prefix' pages, computed some pages before they are needed: what they lead to has
// been asked of memory by then.
class Lookahead {
 public:
  Lookahead(const PrefixCacheState& cache, const PrefixRun& prefix) noexcept
      : cache_(cache),
        page_size_(static_cast<std::size_t>(cache.page_size())),
        num_pages_(prefix.tokens.size() / page_size_),
        tokens_(prefix.tokens),
        chain_(hash_root(cache.spec.hash_seed, prefix.name_space)) {}

  [[nodiscard]] std::size_t num_pages() const noexcept { return num_pages_; }
  [[nodiscard]] std::span<const std::int32_t> run(std::size_t index) const noexcept {
    return tokens_.subspan(index * page_size_, page_size_);
  }

  // The hash of page `index`; asked for one page after another.
  std::uint64_t hash(std::size_t index) noexcept {
    while (hashed_ < num_pages_ && hashed_ <= index + kAhead) {
      chain_ = hash_run(chain_, run(hashed_));
      hashes_[hashed_ % hashes_.size()] = chain_;
      __builtin_prefetch(&cache_.buckets[chain_ & (cache_.buckets.size() - 1)]);
      ++hashed_;
    }
    if (index + kNodeAhead < num_pages_) prefetch_node(index + kNodeAhead);
    return hashes_[index % hashes_.size()];
  }

 private:
  static constexpr std::size_t kNodeAhead = 8;  // pages between asking for a node and its use
  static constexpr std::size_t kAhead = 15;     // likewise for a bucket

  void prefetch_node(std::size_t index) const noexcept {
    const NodeId id = cache_.bucket(hashes_[index % hashes_.size()]);
    if (id == kNoNode) return;
    __builtin_prefetch(&cache_.node(id), 1);
    __builtin_prefetch(&cache_.node(id).page, 1);
    __builtin_prefetch(cache_.tokens_at(id));
  }

  const PrefixCacheState& cache_;
  std::size_t page_size_;
  std::size_t num_pages_;
  std::span<const std::int32_t> tokens_;
  std::uint64_t chain_;
  std::size_t hashed_ = 0;
  std::array<std::uint64_t, kAhead + 1> hashes_{};
};

std::size_t common_tokens(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  return static_cast<std::size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

// < 0, 0 or > 0 as `a` comes before `b`, is it, or comes after it; what others begin with is first.
int compare(const PrefixRun& a, const PrefixRun& b) noexcept {
  if (a.name_space != b.name_space) return a.name_space < b.name_space ? -1 : 1;
  const std::size_t common = common_tokens(a.tokens, b.tokens);
  if (common == a.tokens.size()) return common == b.tokens.size() ? 0 : -1;
  if (common == b.tokens.size()) return 1;
  return a.tokens[common] < b.tokens[common] ? -1 : 1;
}

// What stands behind `pages` whole pages of a prefix, as far as it fits a page.
PrefixRun run_behind(const PrefixRun& prefix, std::int32_t pages, std::int32_t page_size) noexcept {
  const auto size = static_cast<std::size_t>(page_size);
  const std::span<const std::int32_t> rest =
      prefix.tokens.subspan(static_cast<std::size_t>(pages) * size);
  return {prefix.name_space, rest.first(std::min(rest.size(), size))};
}

}  // namespace

NodeId PrefixCacheState::find(NodeId parent, std::uint64_t hash,
                              const PrefixRun& run) const noexcept {
  for (NodeId id = bucket(hash); id != kNoNode; id = node(id).next_in_bucket) {
    const Node& candidate = node(id);
    if (candidate.hash == hash && candidate.parent == parent &&
        candidate.name_space == run.name_space &&
        static_cast<std::size_t>(candidate.num_tokens) == run.tokens.size() &&
        std::memcmp(tokens_at(id), run.tokens.data(), run.tokens.size_bytes()) == 0) {
      return id;
    }
  }
  return kNoNode;
}

template <typename Visit>
PrefixCacheState::Path PrefixCacheState::walk(const PrefixRun& prefix, Visit visit) const noexcept {
  Lookahead ahead(*this, prefix);
  Path path;
  path.hash = hash_root(spec.hash_seed, prefix.name_space);
  for (std::size_t index = 0; index < ahead.num_pages(); ++index) {
    const std::uint64_t hash = ahead.hash(index);
    const NodeId id = find(path.deepest, hash, {prefix.name_space, ahead.run(index)});
    if (id == kNoNode) break;
    visit(id, index);
    path.deepest = id;
    if (node(id).tier == PageTier::kDevice) {
      path.last = id;
      path.hash = hash;
      ++path.pages;
    } else {
      ++path.host_pages;
    }
  }
  return path;
}

PrefixCacheState::Path PrefixCacheState::find_path(const PrefixRun& prefix) const noexcept {
  return walk(prefix, [](NodeId, std::size_t) {});
}

PrefixCacheState::Path PrefixCacheState::use_path(const PrefixRun& prefix,
                                                  std::uint64_t first_use) noexcept {
  return walk(prefix, [this, first_use](NodeId id, std::size_t index) {
    use(id, first_use - index - (node(id).tier == PageTier::kHost ? 1 : 0));
  });
}

// The longest common beginning lies on the way to where the run belongs; of the children that share
// it, the least one is what the search for that beginning ends at.
PrefixCacheState::Closest PrefixCacheState::closest_child(NodeId parent, PageTier tier,
                                                          const PrefixRun& run) const noexcept {
  std::size_t longest = 0;
  NodeId id = first_child(parent, tier);
  while (id != kNoNode) {
    const Node& child = node(id);
    if (child.name_space == run.name_space) {
      longest = std::max(longest, common_tokens(run.tokens, tokens_of(id)));
      if (longest == run.tokens.size()) break;
    }
    id = compare(run_of(id), run) < 0 ? child.greater : child.less;
  }
  if (longest == 0) return {};
  const PrefixRun beginning{run.name_space, run.tokens.first(longest)};
  return {least_from(parent, tier, beginning), static_cast<std::int32_t>(longest)};
}

NodeId PrefixCacheState::least_from(NodeId parent, PageTier tier,
                                    const PrefixRun& run) const noexcept {
  NodeId least = kNoNode;
  NodeId id = first_child(parent, tier);
  while (id != kNoNode) {
    const bool before = compare(run_of(id), run) < 0;
    if (!before) least = id;
    id = before ? node(id).greater : node(id).less;
  }
  return least;
}

PrefixCacheState::Closest PrefixCacheState::partial_match(const Path& path,
                                                          const PrefixRun& prefix) const noexcept {
  const PrefixRun run = run_behind(prefix, path.pages, page_size());
  const Closest best = closest_child(path.last, PageTier::kDevice, run);
  return best.common >= spec.min_partial_tokens ? best : Closest{};
}

// Ends before a page that a copy is still writing.
PrefixCacheState::HostPart PrefixCacheState::host_part(const Path& path,
                                                       const PrefixRun& prefix) const noexcept {
  if (!has_host()) return {};
  HostPart part{path.deepest, path.host_pages, 0, false};
  std::int32_t behind = 0;
  for (NodeId id = path.deepest; id != path.last; id = node(id).parent) {
    ++behind;
    if (page_of(node(id)).transfers > 0) {
      part = {node(id).parent, path.host_pages - behind, 0, false};
    }
  }
  part.tokens = part.pages * page_size();
  if (part.pages == path.host_pages) {
    const PrefixRun run = run_behind(prefix, path.pages + path.host_pages, page_size());
    const Closest best = closest_child(path.deepest, PageTier::kHost, run);
    if (best.common >= spec.min_partial_tokens && page_of(node(best.node)).transfers == 0) {
      part = {best.node, part.pages + 1, part.tokens + best.common, true};
    }
  }
  return part.pages > 0 ? part : HostPart{};
}

NodeId PrefixCacheState::insert(PageId page, NodeId parent, std::uint64_t hash,
                                const PrefixRun& run, PageTier tier) noexcept {
  const NodeId id = first_free;
  first_free = node(id).next_in_bucket;
  std::ranges::copy(run.tokens, tokens_at(id));
  Node& added = node(id);
  added = Node{};
  added.hash = hash;
  added.serial = ++last_serial;
  added.parent = parent;
  added.num_tokens = static_cast<std::int32_t>(run.tokens.size());
  added.name_space = run.name_space;
  added.next_in_bucket = bucket(hash);
  bucket(hash) = id;
  settle(id, tier, page);
  return id;
}

// Into the treap, the counts and the pool of a tier.
void PrefixCacheState::settle(NodeId id, PageTier tier, PageId page) noexcept {
  node(id).tier = tier;
  node(id).page = page;
  at(tier).nodes[static_cast<std::size_t>(page)] = id;
  insert_sibling(id);
  const NodeId parent = node(id).parent;
  if (parent != kNoNode && node(parent).num_children[index_of(tier)]++ == 0 &&
      node(parent).tier == tier) {
    delist(parent);
  }
  at(tier).pool->index(page);
  ++(tier == PageTier::kDevice ? stats.pages : stats.host_pages);
}

// Out of them. The parent may have become a leaf.
void PrefixCacheState::unsettle(NodeId id) noexcept {
  const PageTier tier = node(id).tier;
  const PageId page = node(id).page;
  delist(id);
  remove_sibling(id);
  const NodeId parent = node(id).parent;
  if (parent != kNoNode && --node(parent).num_children[index_of(tier)] == 0 &&
      node(parent).tier == tier) {
    enlist(parent);
  }
  at(tier).nodes[static_cast<std::size_t>(page)] = kNoNode;
  at(tier).pool->unindex(page);
  --(tier == PageTier::kDevice ? stats.pages : stats.host_pages);
}

void PrefixCacheState::move(NodeId id, PageTier tier, PageId page) noexcept {
  unsettle(id);
  settle(id, tier, page);
  if (node(id).is_leaf()) enlist(id);
}

PageId PrefixCacheState::extend(PageId parent_page, const PrefixRun& run, PageId page,
                                const Retention& retention) noexcept {
  const NodeId parent = parent_page == kNoPage ? kNoNode : node_of(parent_page);
  const std::uint64_t before =
      parent == kNoNode ? hash_root(spec.hash_seed, run.name_space) : node(parent).hash;
  const std::uint64_t hash = hash_run(before, run.tokens);
  const NodeId known = find(parent, hash, run);
  if (known != kNoNode && node(known).tier == PageTier::kDevice) {
    return is_written(node(known)) ? node(known).page : kNoPage;
  }
  if (pool->page(page).indexed || announcing) return kNoPage;
  if (known != kNoNode) {
    replace(known, page);
    retain(known, retention);
    ++stats.stored;
    return page;
  }
  const NodeId id = insert(page, parent, hash, run);
  Node& added = node(id);
  added.priority = retention.priority;
  added.time_to_live = retention.time_to_live;
  added.last_use = parent == kNoNode ? ++clock : node(parent).last_use - 1;
  added.last_time = parent == kNoNode ? now : node(parent).last_time;
  enlist(id);
  ++stats.stored;
  announce(PrefixEvent::Kind::kStored, id);
  return page;
}

void PrefixCacheState::remove(NodeId id) noexcept {
  NodeId* link = &bucket(node(id).hash);
  while (*link != id) link = &node(*link).next_in_bucket;
  *link = node(id).next_in_bucket;
  unsettle(id);
  node(id) = Node{};
  node(id).next_in_bucket = first_free;
  first_free = id;
}

// Down to where the node's hash is the greatest; what was there is cut in two below it.
void PrefixCacheState::insert_sibling(NodeId id) noexcept {
  const PrefixRun run = run_of(id);
  NodeId* link = &children_of(node(id).parent, node(id).tier);
  while (*link != kNoNode && node(*link).hash >= node(id).hash) {
    Node& sibling = node(*link);
    link = compare(run_of(*link), run) < 0 ? &sibling.greater : &sibling.less;
  }
  NodeId rest = *link;
  *link = id;
  NodeId* less = &node(id).less;
  NodeId* greater = &node(id).greater;
  while (rest != kNoNode) {
    NodeId*& side = compare(run_of(rest), run) < 0 ? less : greater;
    *side = rest;
    side = side == less ? &node(rest).greater : &node(rest).less;
    rest = *side;
  }
  *less = *greater = kNoNode;
}

// The two halves below the node are joined in its place.
void PrefixCacheState::remove_sibling(NodeId id) noexcept {
  const PrefixRun run = run_of(id);
  NodeId* link = &children_of(node(id).parent, node(id).tier);
  while (*link != id) {
    Node& sibling = node(*link);
    link = compare(run_of(*link), run) < 0 ? &sibling.greater : &sibling.less;
  }
  NodeId less = node(id).less;
  NodeId greater = node(id).greater;
  while (less != kNoNode && greater != kNoNode) {
    const bool less_on_top = node(less).hash >= node(greater).hash;
    NodeId& top = less_on_top ? less : greater;
    *link = top;
    link = less_on_top ? &node(top).greater : &node(top).less;
    top = *link;
  }
  *link = less != kNoNode ? less : greater;
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
