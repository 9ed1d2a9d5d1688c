// SPDX-License-Identifier: Apache-2.0
// The rows of a block: what of them stays where it is, what moves, what is written.
#include <algorithm>
#include <cstring>
#include <utility>

#include "batching/batch_builder_state.hpp"

namespace quire {
inline namespace v0 {
namespace internal {
namespace {

std::int32_t slot_of(SeqId seq) noexcept { return static_cast<std::int32_t>(seq.slot); }

// Positions and slots of the tokens [first, length) of a sequence, page by page.
void write_tokens(std::span<const PageId> pages, std::int32_t page_size, std::int32_t first,
                  std::int32_t length, std::int32_t* positions, std::int64_t* slots) noexcept {
  for (std::int32_t token = first; token < length;) {
    const std::int32_t offset = token % page_size;
    const std::int32_t run = std::min(page_size - offset, length - token);
    const std::int64_t slot =
        std::int64_t{pages[static_cast<std::size_t>(token / page_size)]} * page_size + offset;
    for (std::int32_t i = 0; i < run; ++i) {
      *positions++ = token + i;
      *slots++ = slot + i;
    }
    token += run;
  }
}

}  // namespace

BatchBuilderState::BatchBuilderState(std::shared_ptr<PageTableState> sequences)
    : table(std::move(sequences)),
      last_use(table->sequences.size()),
      next(table->sequences.size()),
      rows(table->sequences.size()),
      row_of(table->sequences.size()),
      order(table->sequences.size()) {
  moves.reserve(table->sequences.size());
}

void BatchBuilderState::take(const std::byte* new_block, const BatchShape& new_shape) noexcept {
  block = new_block;
  shape = new_shape;
  num_rows = 0;
  used_rows = static_cast<std::size_t>(shape.num_seqs);
  used_pages = static_cast<std::size_t>(std::max(shape.total_pages, 0));
}

std::int32_t BatchBuilderState::row_with(SeqId seq) const noexcept {
  const std::size_t row = row_of[seq.slot];
  return row < num_rows && rows[row].seq == seq ? static_cast<std::int32_t>(row) : kNowhere;
}

// Rows that stay must not change places with one another: `carry_out_moves` counts on it. A row that
// has come forward past the one behind it is written anew, so that all between them may stay.
void BatchBuilderState::find_kept(std::span<Row> now) noexcept {
  for (Row& row : now) row.from = row_with(row.seq);
  std::int32_t passed = 0;  // rows of the block that nothing further comes from
  for (std::size_t index = 0; index < now.size(); ++index) {
    Row& row = now[index];
    const std::int32_t behind = index + 1 < now.size() ? now[index + 1].from : kNowhere;
    const bool leaps = passed <= behind && behind < row.from;
    if (row.from < passed || leaps) {
      row.from = kNowhere;
      continue;
    }
    passed = row.from + 1;
    const Row& before = rows[static_cast<std::size_t>(row.from)];
    row.kept =
        std::min({before.pages, row.pages, table->unedited_since(slot_of(row.seq), before.edits)});
  }
}

// All but the pages of the tables.
// @return Entries of the CSR table.
std::size_t BatchBuilderState::write_lengths(std::span<const BatchEntry> entries,
                                             const batching::Arrays& to) noexcept {
  const std::int32_t page_size = table->pool->spec.page_size;
  std::size_t tokens = 0;
  std::size_t num_pages = 0;
  for (std::size_t index = 0; index < entries.size(); ++index) {
    Row& row = next[index];
    row_of[row.seq.slot] = static_cast<std::uint32_t>(index);
    const std::span<const PageId> pages = table_row(row);
    const std::int32_t length = table->at(slot_of(row.seq)).length;
    const std::int32_t in_last_page = length == 0 ? 0 : length - (row.pages - 1) * page_size;
    const std::int32_t new_tokens = entries[index].new_tokens;
    to.qo_indptr[index] = static_cast<std::int32_t>(tokens);
    to.kv_len[index] = length;
    if (new_tokens == 1) {  // decodes, without a division
      to.positions[tokens] = length - 1;
      to.slot_mapping[tokens] = std::int64_t{pages.back()} * page_size + in_last_page - 1;
    } else {
      write_tokens(pages, page_size, length - new_tokens, length, to.positions.data() + tokens,
                   to.slot_mapping.data() + tokens);
    }
    tokens += static_cast<std::size_t>(new_tokens);
    row.begin = num_pages;
    num_pages += pages.size();
    if (!has_csr()) continue;
    to.kv_page_indptr[index] = static_cast<std::int32_t>(row.begin);
    to.kv_last_page_len[index] = in_last_page;
  }
  const auto pad = [](std::span<std::int32_t> array, std::size_t from, std::size_t value) {
    std::ranges::fill(array.subspan(from), static_cast<std::int32_t>(value));
  };
  pad(to.qo_indptr, entries.size(), tokens);
  pad(to.kv_len, entries.size(), 0);
  pad(to.positions, tokens, 0);
  std::ranges::fill(to.slot_mapping.subspan(tokens), std::int64_t{-1});
  if (!has_csr()) return num_pages;
  pad(to.kv_page_indptr, entries.size(), num_pages);
  pad(to.kv_last_page_len, entries.size(), 0);
  return num_pages;
}

void BatchBuilderState::add_move(const Move& move) noexcept {
  if (!moves.empty() && moves.back().from + moves.back().count == move.from &&
      moves.back().to + moves.back().count == move.to) {
    moves.back().count += move.count;
  } else {
    moves.push_back(move);  // there is room for one a row
  }
}

// As the rows stay in order, what one of them takes overlaps only what it leaves itself, and what is
// left by those before it, if it moves towards the front, or by those behind it, if it moves towards
// the end. So those that move towards the end go first, the last of them first; then the others.
void BatchBuilderState::carry_out_moves(std::span<PageId> pages) noexcept {
  const auto carry_out = [pages](const Move& move) {
    std::memmove(pages.data() + move.to, pages.data() + move.from, move.count * sizeof(PageId));
  };
  for (std::size_t i = moves.size(); i-- > 0;) {
    if (moves[i].to > moves[i].from) carry_out(moves[i]);
  }
  for (const Move& move : moves) {
    if (move.to < move.from) carry_out(move);
  }
}

void BatchBuilderState::move_kept(std::span<const Row> now, const batching::Arrays& to) noexcept {
  moves.clear();
  for (const Row& row : now) {
    if (row.from == kNowhere) continue;
    add_move({.from = rows[static_cast<std::size_t>(row.from)].begin,
              .to = row.begin,
              .count = static_cast<std::size_t>(row.kept)});
  }
  if (has_csr()) carry_out_moves(to.kv_page_indices);
  moves.clear();
  for (std::size_t index = 0; index < now.size(); ++index) {
    if (now[index].from == kNowhere) continue;
    add_move({.from = static_cast<std::size_t>(now[index].from) * columns(),
              .to = index * columns(),
              .count = columns()});
  }
  if (columns() > 0) carry_out_moves(to.page_table);
}

// Returns the end of the row.
PageId* BatchBuilderState::copy_changed(const Row& row, PageId* begin) const noexcept {
  const auto changed = static_cast<std::size_t>(row.pages - row.kept);
  const PageId* const from = table->row(slot_of(row.seq)) + row.kept;
  std::memcpy(begin + row.kept, from, changed * sizeof(PageId));
  if (row.from != kNowhere) fill_new_holes(row, begin);
  return begin + row.pages;
}

void BatchBuilderState::patch_dense(const Row& row, PageId* begin) const noexcept {
  PageId* const end = copy_changed(row, begin);
  const std::size_t used =
      row.from == kNowhere
          ? columns()
          : static_cast<std::size_t>(rows[static_cast<std::size_t>(row.from)].pages);
  if (end < begin + used) std::fill(end, begin + used, kNoPage);
}

// The pages of the tables. A row is read once for both.
void BatchBuilderState::write_pages(std::span<const Row> now, std::size_t num_pages,
                                    const batching::Arrays& to) noexcept {
  for (std::size_t index = 0; index < now.size(); ++index) {
    if (has_csr()) copy_changed(now[index], to.kv_page_indices.data() + now[index].begin);
    if (columns() > 0) patch_dense(now[index], to.page_table.data() + index * columns());
  }
  if (has_csr() && num_pages < used_pages) {
    std::ranges::fill(to.kv_page_indices.subspan(num_pages, used_pages - num_pages), kNoPage);
  }
  if (now.size() < used_rows) {
    std::ranges::fill(
        to.page_table.subspan(now.size() * columns(), (used_rows - now.size()) * columns()),
        kNoPage);
  }
  used_pages = num_pages;
  used_rows = now.size();
}

// Pages given back since; those of the rest of the row are copied as holes.
void BatchBuilderState::fill_new_holes(const Row& row, PageId* begin) const noexcept {
  const std::int32_t end = std::min(row.holes, row.kept);
  for (std::int32_t i = rows[static_cast<std::size_t>(row.from)].holes; i < end; ++i) {
    begin[i] = kNoPage;
  }
}

void BatchBuilderState::write(std::span<const BatchEntry> entries,
                              const batching::Arrays& to) noexcept {
  const std::span<Row> now = std::span(next).first(entries.size());
  if (num_rows > 0) find_kept(now);
  const std::size_t num_pages = write_lengths(entries, to);
  if (num_rows > 0) move_kept(now, to);
  write_pages(now, num_pages, to);
  std::swap(rows, next);
  num_rows = entries.size();
}

}  // namespace internal
}  // namespace v0
}  // namespace quire
