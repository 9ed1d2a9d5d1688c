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
    const PageId page = cache_.bucket(hashes_[index % hashes_.size()]);
    if (page == kNoPage) return;
    __builtin_prefetch(&cache_.node(page), 1);
    __builtin_prefetch(&cache_.node(page).children, 1);
    __builtin_prefetch(cache_.tokens_at(page));
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

}  // namespace

PageId PrefixCacheState::find(PageId parent, std::uint64_t hash,
                              const PrefixRun& run) const noexcept {
  for (PageId page = bucket(hash); page != kNoPage; page = node(page).next_in_bucket) {
    const Node& candidate = node(page);
    if (candidate.hash == hash && candidate.parent == parent &&
        candidate.name_space == run.name_space &&
        static_cast<std::size_t>(candidate.num_tokens) == run.tokens.size() &&
        std::memcmp(tokens_at(page), run.tokens.data(), run.tokens.size_bytes()) == 0) {
      return page;
    }
  }
  return kNoPage;
}

template <typename Visit>
PrefixCacheState::Path PrefixCacheState::walk(const PrefixRun& prefix, Visit visit) const noexcept {
  Lookahead ahead(*this, prefix);
  Path path{kNoPage, 0, hash_root(spec.hash_seed, prefix.name_space)};
  for (std::size_t index = 0; index < ahead.num_pages(); ++index) {
    const std::uint64_t hash = ahead.hash(index);
    const PageId page = find(path.last, hash, {prefix.name_space, ahead.run(index)});
    if (page == kNoPage) break;
    visit(page, path.pages);
    path = {page, path.pages + 1, hash};
  }
  return path;
}

PrefixCacheState::Path PrefixCacheState::find_path(const PrefixRun& prefix) const noexcept {
  return walk(prefix, [](PageId, std::int32_t) {});
}

PrefixCacheState::Path PrefixCacheState::use_path(const PrefixRun& prefix,
                                                  std::uint64_t first_use) noexcept {
  return walk(prefix, [this, first_use](PageId page, std::int32_t index) {
    use(page, first_use - static_cast<std::uint64_t>(index));
  });
}

// The longest common beginning lies on the way to where the run belongs; of the children that share
// it, the least one is what the search for that beginning ends at.
PrefixCacheState::Closest PrefixCacheState::closest_child(PageId parent,
                                                          const PrefixRun& run) const noexcept {
  std::size_t longest = 0;
  PageId page = first_child(parent);
  while (page != kNoPage) {
    const Node& child = node(page);
    if (child.name_space == run.name_space) {
      longest = std::max(longest, common_tokens(run.tokens, tokens_of(page)));
      if (longest == run.tokens.size()) break;
    }
    page = compare(run_of(page), run) < 0 ? child.greater : child.less;
  }
  if (longest == 0) return {};
  const PrefixRun beginning{run.name_space, run.tokens.first(longest)};
  return {least_from(parent, beginning), static_cast<std::int32_t>(longest)};
}

PageId PrefixCacheState::least_from(PageId parent, const PrefixRun& run) const noexcept {
  PageId least = kNoPage;
  PageId page = first_child(parent);
  while (page != kNoPage) {
    const bool before = compare(run_of(page), run) < 0;
    if (!before) least = page;
    page = before ? node(page).greater : node(page).less;
  }
  return least;
}

PrefixCacheState::Closest PrefixCacheState::partial_match(const Path& path,
                                                          const PrefixRun& prefix) const noexcept {
  const auto size = static_cast<std::size_t>(page_size());
  const std::span<const std::int32_t> rest =
      prefix.tokens.subspan(static_cast<std::size_t>(path.pages) * size);
  const Closest best =
      closest_child(path.last, {prefix.name_space, rest.first(std::min(rest.size(), size))});
  return best.common >= spec.min_partial_tokens ? best : Closest{};
}

void PrefixCacheState::insert(PageId page, PageId parent, std::uint64_t hash,
                              const PrefixRun& run) noexcept {
  std::ranges::copy(run.tokens, tokens_at(page));
  Node& added = node(page);
  added = Node{};
  added.hash = hash;
  added.parent = parent;
  added.num_tokens = static_cast<std::int32_t>(run.tokens.size());
  added.name_space = run.name_space;
  added.next_in_bucket = bucket(hash);
  bucket(hash) = page;
  insert_sibling(page);
  if (parent != kNoPage && node(parent).num_children++ == 0) delist(parent);
  pool->index(page);
  ++stats.pages;
}

PageId PrefixCacheState::extend(PageId parent, const PrefixRun& run, PageId page,
                                const Retention& retention) noexcept {
  const std::uint64_t before =
      parent == kNoPage ? hash_root(spec.hash_seed, run.name_space) : node(parent).hash;
  const std::uint64_t hash = hash_run(before, run.tokens);
  const PageId known = find(parent, hash, run);
  if (known != kNoPage) return known;
  if (pool->page(page).indexed || announcing) return kNoPage;
  insert(page, parent, hash, run);
  Node& added = node(page);
  added.priority = retention.priority;
  added.time_to_live = retention.time_to_live;
  added.last_use = parent == kNoPage ? ++clock : node(parent).last_use - 1;
  added.last_time = parent == kNoPage ? now : node(parent).last_time;
  enlist(page);
  ++stats.stored;
  announce(PrefixEvent::Kind::kStored, page, parent, run_of(page));
  return page;
}

void PrefixCacheState::remove(PageId page) noexcept {
  const Node removed = node(page);
  PageId* link = &bucket(removed.hash);
  while (*link != page) link = &node(*link).next_in_bucket;
  *link = removed.next_in_bucket;
  remove_sibling(page);
  delist(page);
  node(page) = Node{};
  if (removed.parent != kNoPage && --node(removed.parent).num_children == 0) {
    enlist(removed.parent);
  }
  pool->unindex(page);
  --stats.pages;
}

// Down to where the page's hash is the greatest; what was there is cut in two below it.
void PrefixCacheState::insert_sibling(PageId page) noexcept {
  const PrefixRun run = run_of(page);
  PageId* link = &children_of(node(page).parent);
  while (*link != kNoPage && node(*link).hash >= node(page).hash) {
    Node& sibling = node(*link);
    link = compare(run_of(*link), run) < 0 ? &sibling.greater : &sibling.less;
  }
  PageId rest = *link;
  *link = page;
  PageId* less = &node(page).less;
  PageId* greater = &node(page).greater;
  while (rest != kNoPage) {
    PageId*& side = compare(run_of(rest), run) < 0 ? less : greater;
    *side = rest;
    side = side == less ? &node(rest).greater : &node(rest).less;
    rest = *side;
  }
  *less = *greater = kNoPage;
}

// The two halves below the page are joined in its place.
void PrefixCacheState::remove_sibling(PageId page) noexcept {
  const PrefixRun run = run_of(page);
  PageId* link = &children_of(node(page).parent);
  while (*link != page) {
    Node& sibling = node(*link);
    link = compare(run_of(*link), run) < 0 ? &sibling.greater : &sibling.less;
  }
  PageId less = node(page).less;
  PageId greater = node(page).greater;
  while (less != kNoPage && greater != kNoPage) {
    const bool less_on_top = node(less).hash >= node(greater).hash;
    PageId& top = less_on_top ? less : greater;
    *link = top;
    link = less_on_top ? &node(top).greater : &node(top).less;
    top = *link;
  }
  *link = less != kNoPage ? less : greater;
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
