// SPDX-License-Identifier: Apache-2.0
// The window tables of a batcher. Every sequence has a share of the pool that holds its window and the
// tokens of the steps in flight, so that no page is ever missing.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "batching/batcher_state.hpp"
#include "batching/memory.hpp"
#include "cache/failure.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

namespace {

// Pages that so many tokens are on at most, wherever they begin.
std::int64_t pages_spanned(std::int64_t tokens, std::int64_t page_size) {
  return tokens == 0 ? 0 : (tokens + page_size - 2) / page_size + 1;
}

}  // namespace

// A sequence holds its window, the tokens of the steps in flight and, where windows are kept at the ends of
// whole pages of the first table, what lies behind the last of these. That is t tokens on
// ⌊(t − 2) / page_size⌋ + 2 pages at most, no more than the share if t ≤ (share − 1) · page_size + 1.
void BatcherState::add_window(PageTable window_table, PageTableState& table_state) {
  const auto refuse = [](const std::string& text) {
    throw Error(ErrorCode::kInvalidArgument, "[batcher] windows: expected " + text);
  };
  const PageTableSpec& of = window_table.spec();
  const PageTableSpec& first = table.spec();
  if (of.window_left < 0) refuse("tables with a window, got one without");
  if (of.max_seqs < first.max_seqs || of.max_tokens_per_seq < first.max_tokens_per_seq) {
    refuse(fmt::format("at least {} sequences of {} tokens, as the table has, got {} of {}",
                       first.max_seqs, first.max_tokens_per_seq, of.max_seqs,
                       of.max_tokens_per_seq));
  }
  const PagePoolSpec& pool = window_table.pool_spec();
  const std::int64_t steps = spec.max_steps_in_flight;
  const std::int64_t kept_tokens =
      std::int64_t{of.window_left} + (prefixes ? table.pool_spec().page_size - 1 : 0);
  const std::int64_t suffixes = prefixes ? spec.cached_windows : 0;
  const std::int64_t suffix_pages = pages_spanned(std::max(of.window_left, 1), pool.page_size);
  const std::int64_t share = (pool.num_pages - suffixes * suffix_pages) / first.max_seqs;
  const std::int64_t chunk = ((share - 1) * pool.page_size + 1 - kept_tokens) / steps;
  if (share < 1 || chunk < 1) {
    refuse(
        fmt::format("at least {} pages for each of {} sequences and {} for each of {} cached "
                    "windows, got {} in all",
                    pages_spanned(kept_tokens + steps, pool.page_size), first.max_seqs,
                    suffix_pages, suffixes, pool.num_pages));
  }
  Window window{std::move(window_table), table_state};
  window.seqs.resize(places.size());
  window.share = static_cast<std::int32_t>(share);
  window.suffix_pages = static_cast<std::int32_t>(suffix_pages);
  window.suffixes.resize(static_cast<std::size_t>(suffixes));
  window.pages.resize(static_cast<std::size_t>(suffixes * suffix_pages));
  window.dropped.resize(static_cast<std::size_t>(pool.num_pages));
  window.touched.reserve(window.dropped.size());
  if (suffixes > 0) window.kept.assign(prefixes->nodes.size(), kNobody);
  windows.push_back(std::move(window));
  max_chunk = static_cast<std::int32_t>(std::min<std::int64_t>(max_chunk, chunk));
}

// What the plan takes of a window table, exactly: what the preempted share with others does not come free,
// and of those who share a partial last page the last one to write need not copy it.
class BatcherState::WindowDemand {
 public:
  explicit WindowDemand(const Window& window) noexcept
      : window_(window), free_(window.table.num_free_pages()) {}
  WindowDemand(const WindowDemand&) = delete;
  WindowDemand& operator=(const WindowDemand&) = delete;
  ~WindowDemand() {
    for (const PageId page : window_.touched) window_.dropped[static_cast<std::size_t>(page)] = 0;
    window_.touched.clear();
  }

  void preempt(SeqId seq) noexcept {
    const std::int32_t slot = window_.sequences.find(seq);
    if (slot == PageTableState::kNoSlot) return;
    for (const PageId page : window_.sequences.held_pages(slot)) {
      if (drop(page) == refs(page)) ++free_;
    }
  }
  void admit(const StepItem& item) noexcept {
    const std::int64_t page_size = window_.table.pool_spec().page_size;
    pages_ += (item.position + item.num_new_tokens + page_size - 1) / page_size -
              item.position / page_size;
    ++admitted_;
  }
  void append(SeqId seq, std::int32_t n) noexcept {
    const PageTableState& rows = window_.sequences;
    const std::int32_t slot = rows.find(seq);
    const std::int32_t length = rows.at(slot).length;
    pages_ += rows.pages_for(length + n) - rows.pages_for(length);
    const PageId tail = rows.shared_tail(slot);
    if (tail == kNoPage || refs(tail) - window_.dropped[static_cast<std::size_t>(tail)] < 2) return;
    drop(tail);
    ++pages_;
  }
  [[nodiscard]] std::int64_t pages() const noexcept { return pages_; }
  [[nodiscard]] std::int64_t free() const noexcept { return free_; }
  [[nodiscard]] std::int32_t admitted() const noexcept { return admitted_; }

 private:
  std::int32_t drop(PageId page) noexcept {
    std::int32_t& count = window_.dropped[static_cast<std::size_t>(page)];
    if (count == 0) window_.touched.push_back(page);
    return ++count;
  }
  [[nodiscard]] std::int32_t refs(PageId page) const noexcept {
    return window_.sequences.pool->page(page).refs;
  }

  const Window& window_;
  std::int64_t free_;
  std::int64_t pages_ = 0;
  std::int32_t admitted_ = 0;
};

Status BatcherState::check_windows(const StepPlan& plan) const noexcept {
  for (const Window& window : windows) {
    WindowDemand demand(window);
    const auto seq_of = [&](std::int32_t index) {
      return window.seqs[static_cast<std::size_t>(index)];
    };
    for (std::size_t i = 0; i < plan.preempted.size(); ++i) {
      demand.preempt(seq_of(running[running.size() - 1 - i]));
    }
    for (const StepItem& item : plan.items) {
      if (item.admitted) {
        demand.admit(item);
      } else if (window.table.length(seq_of(item.index)) == at(item.index).cached) {
        demand.append(seq_of(item.index), item.num_new_tokens);
      } else {
        return cache::failure(ErrorCode::kBadHandle,
                              "[batcher] commit: expected the window sequence of request {} as it "
                              "was left, got one that was destroyed or changed",
                              item.request);
      }
    }
    const std::int32_t seqs = window.table.num_seqs() + demand.admitted();
    if (demand.pages() <= demand.free() && seqs <= window.table.spec().max_seqs) continue;
    return cache::failure(ErrorCode::kOutOfPages,
                          "[batcher] commit: expected {} free pages of a window table and room for "
                          "{} sequences, got {} and {}: others took some",
                          demand.pages(), seqs, demand.free(), window.table.spec().max_seqs);
  }
  return {};
}

void BatcherState::reserve_windows(StepPlan& plan) const {
  plan.windows.resize(windows.size());
  for (StepPlan::Window& part : plan.windows) {
    part.batch.clear();
    part.copies.clear();
    batching::reserve_more(part.batch, plan.items.size());
    batching::reserve_more(part.copies, plan.items.size());
  }
}

void BatcherState::append_windows(const StepItem& item, StepPlan& plan) noexcept {
  for (std::size_t i = 0; i < windows.size(); ++i) {
    SeqId& seq = windows[i].seqs[static_cast<std::size_t>(item.index)];
    if (item.admitted) {
      seq = item.position > 0
                ? begin_window(windows[i], end_of(at(item.index), item.position), item.position)
                : *windows[i].table.create();
    }
    static_cast<void>(windows[i].table.append(seq, item.num_new_tokens, plan.windows[i].copies));
    plan.windows[i].batch.push_back({seq, item.num_new_tokens});
  }
}

void BatcherState::slide(const Place& place, std::int32_t written) noexcept {
  if (prefixes) written = written / table.pool_spec().page_size * table.pool_spec().page_size;
  if (table.spec().window_left >= 0) static_cast<void>(table.slide(place.seq, written));
  const auto index = static_cast<std::size_t>(&place - places.data());
  for (Window& window : windows) static_cast<void>(window.table.slide(window.seqs[index], written));
}

void BatcherState::fork_windows(const Place& place, std::int32_t sample,
                                std::int32_t length) noexcept {
  const auto index = static_cast<std::size_t>(&place - places.data());
  for (Window& window : windows) {
    const Result<SeqId> forked = window.table.fork(window.seqs[index], length);
    if (forked.ok()) window.seqs[static_cast<std::size_t>(sample)] = *forked;
  }
}

void BatcherState::destroy_sequences(const Place& place) noexcept {
  static_cast<void>(table.destroy(place.seq));
  const auto index = static_cast<std::size_t>(&place - places.data());
  for (Window& window : windows) {
    static_cast<void>(window.table.destroy(std::exchange(window.seqs[index], SeqId{})));
  }
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
