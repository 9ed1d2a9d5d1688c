// SPDX-License-Identifier: Apache-2.0
#include "quire/page_pool.hpp"

#include <fmt/format.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cache/failure.hpp"
#include "cache/page_pool_state.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::PagePoolState;

void require_positive(const char* field, std::int32_t value) {
  if (value >= 1) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("[page_pool] {}: expected at least 1, got {}", field, value));
}

std::shared_ptr<PagePoolState> make_state(const PagePoolSpec& spec) {
  require_positive("num_pages", spec.num_pages);
  require_positive("page_size", spec.page_size);
  try {
    return std::make_shared<PagePoolState>(spec);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("[page_pool] num_pages: expected memory for {} pages' counts, got none",
                            spec.num_pages));
  }
}

Status unknown_page(const char* call, const PagePoolState& pool, PageId page) noexcept {
  return failure(ErrorCode::kBadHandle, "[page_pool] {}: expected a page in [0, {}), got {}", call,
                 pool.spec.num_pages, page);
}

// Takes one reference of the caller back, if there is one.
Status release_one(PagePoolState& pool, PageId page) noexcept {
  if (!pool.has(page)) return unknown_page("release", pool, page);
  if (pool.page(page).caller_refs == 0) {
    return failure(ErrorCode::kBadHandle,
                   "[page_pool] release: expected a page that the caller holds, got page {} ({})",
                   page, pool.page(page).refs == 0 ? "free" : "held by tables and caches only");
  }
  --pool.page(page).caller_refs;
  pool.drop_ref(page);
  return {};
}

// The free list has different free pages.
Status check_free_list(const PagePoolState& pool) {
  if (pool.num_free < 0 || pool.num_free > pool.spec.num_pages) {
    return failure(ErrorCode::kInternal, "[page_pool] check: the counter of free pages says {}",
                   pool.num_free);
  }
  std::vector<bool> listed(pool.pages.size());
  for (const PageId page :
       std::span(pool.free_pages).first(static_cast<std::size_t>(pool.num_free))) {
    if (!pool.has(page)) {
      return failure(ErrorCode::kInternal, "[page_pool] check: the free list has page {}", page);
    }
    if (pool.page(page).refs != 0) {
      return failure(ErrorCode::kInternal,
                     "[page_pool] check: page {} is on the free list with {} references", page,
                     pool.page(page).refs);
    }
    if (listed[static_cast<std::size_t>(page)]) {
      return failure(ErrorCode::kInternal, "[page_pool] check: page {} is on the free list twice",
                     page);
    }
    listed[static_cast<std::size_t>(page)] = true;
  }
  return {};
}

// The pages without references are as many as the free list has; callers hold no more than all.
Status check_counts(const PagePoolState& pool) noexcept {
  std::int32_t without_refs = 0;
  std::int32_t idle = 0;
  for (PageId id = 0; id < pool.spec.num_pages; ++id) {
    const PagePoolState::Page& page = pool.page(id);
    if (page.refs == 0) ++without_refs;
    if (page.refs == 1 && page.indexed) ++idle;
    if (page.caller_refs < 0 || page.table_refs() < 0) {
      return failure(ErrorCode::kInternal,
                     "[page_pool] check: page {} has {} references, {} of them the callers' and {} "
                     "a prefix cache's",
                     id, page.refs, page.caller_refs, page.indexed ? 1 : 0);
    }
  }
  if (idle != pool.num_idle) {
    return failure(ErrorCode::kInternal,
                   "[page_pool] check: {} pages are a prefix cache's alone, the counter says {}",
                   idle, pool.num_idle);
  }
  if (without_refs == pool.num_free) return {};
  return failure(ErrorCode::kInternal,
                 "[page_pool] check: {} pages have no references, {} are on the free list",
                 without_refs, pool.num_free);
}

}  // namespace

Status internal::PagePoolState::check() const noexcept {
  try {
    Status status = check_free_list(*this);
    return status.ok() ? check_counts(*this) : status;
  } catch (const std::exception&) {
    return failure(ErrorCode::kOutOfMemory,
                   "[page_pool] check: expected memory for a mark of each page, got none");
  }
}

PagePool::PagePool(const PagePoolSpec& spec) : state_(make_state(spec)) {}
PagePool::PagePool(PagePool&&) noexcept = default;
PagePool& PagePool::operator=(PagePool&&) noexcept = default;
PagePool::~PagePool() = default;

const PagePoolSpec& PagePool::spec() const noexcept { return state_->spec; }

std::int32_t PagePool::num_free() const noexcept { return state_->num_free; }

std::int32_t PagePool::num_used() const noexcept {
  return state_->spec.num_pages - state_->num_free;
}

std::int32_t PagePool::ref_count(PageId page) const noexcept {
  return state_->has(page) ? state_->page(page).refs : 0;
}

Status PagePool::allocate(std::span<PageId> pages) noexcept {
  if (std::cmp_greater(pages.size(), state_->num_free)) {
    return failure(ErrorCode::kOutOfPages, "[page_pool] allocate: expected {} free pages, got {}",
                   pages.size(), state_->num_free);
  }
  for (PageId& page : pages) {
    page = state_->take();
    state_->page(page).caller_refs = 1;
  }
  return {};
}

Status PagePool::retain(std::span<const PageId> pages) noexcept {
  for (const PageId page : pages) {
    if (!state_->has(page)) return unknown_page("retain", *state_, page);
    if (state_->page(page).refs == 0) {
      return failure(ErrorCode::kBadHandle,
                     "[page_pool] retain: expected a page in use, got page {} (free)", page);
    }
  }
  for (const PageId page : pages) {
    state_->add_ref(page);
    ++state_->page(page).caller_refs;
  }
  return {};
}

Status PagePool::release(std::span<const PageId> pages) noexcept {
  for (std::size_t done = 0; done < pages.size(); ++done) {
    Status status = release_one(*state_, pages[done]);
    if (status.ok()) continue;
    while (done-- > 0) {  // backwards, so that the free list ends up as it was
      state_->undo_drop_ref(pages[done]);
      ++state_->page(pages[done]).caller_refs;
    }
    return status;
  }
  return {};
}

Status PagePool::check() const noexcept { return state_->check(); }

}  // namespace v0
}  // namespace quire
