// SPDX-License-Identifier: Apache-2.0
// Page pools, page tables and the copy plans that they make.
#include <fmt/format.h>

#include <span>

#include "c/convert.hpp"
#include "c/handles.hpp"
#include "c/structs.hpp"

namespace quire::c {
namespace {

static_assert(kNoPage == QUIRE_NO_PAGE);

/// Checks a pool and a list of pages, then hands both to `body`.
template <typename Page, typename Body>
quire_status with_pages(std::string_view function, quire_page_pool* pool, Page* pages,
                        std::size_t count, Body body) noexcept {
  return guarded([&] {
    Status status = check_handle(function, "pool", pool);
    if (status.ok() && pages == nullptr && count > 0) {
      status = null_argument({function, "pages", fmt::format("int32 [{}]", count)});
    }
    return status.ok() ? body(pool->pool, std::span<Page>(pages, count)) : status;
  });
}

Status create_pool(const quire_page_pool_spec* spec, quire_page_pool** out) {
  constexpr std::string_view kFunction = "quire_page_pool_create";
  quire_page_pool_spec given;
  Status status = check_result_handle(kFunction, "pool", out);
  if (status.ok()) status = read_struct(kFunction, "spec", spec, given);
  if (!status.ok()) return status;
  *out = new quire_page_pool{
      .pool = PagePool({.num_pages = given.num_pages, .page_size = given.page_size})};
  return {};
}

Status create_table(quire_page_pool* pool, const quire_page_table_spec* spec,
                    quire_page_table** out) {
  constexpr std::string_view kFunction = "quire_page_table_create";
  quire_page_table_spec given;
  Status status = check_result_handle(kFunction, "table", out);
  if (status.ok()) status = check_handle(kFunction, "pool", pool);
  if (status.ok()) status = read_struct(kFunction, "spec", spec, given);
  if (!status.ok()) return status;
  const PageTableSpec cpp_spec{.max_seqs = given.max_seqs,
                               .max_tokens_per_seq = given.max_tokens_per_seq,
                               .window_left = given.window_left};
  *out = new quire_page_table{.table = PageTable(pool->pool, cpp_spec)};
  return {};
}

Status store(const Result<SeqId>& result, quire_seq_id* out) {
  if (result.ok()) *out = to_c(*result);
  return result.status();
}

Status create_seq(quire_page_table* table, quire_seq_id* seq) {
  constexpr std::string_view kFunction = "quire_page_table_create_seq";
  Status status = check_handle(kFunction, "table", table);
  if (status.ok() && seq == nullptr) {
    status = null_argument({kFunction, "seq", "a place for the sequence"});
  }
  return status.ok() ? store(table->table.create(), seq) : status;
}

Status fork_seq(quire_page_table* table, quire_seq_id seq, std::int32_t length,
                quire_seq_id* forked) {
  constexpr std::string_view kFunction = "quire_page_table_fork_seq";
  Status status = check_handle(kFunction, "table", table);
  if (status.ok() && forked == nullptr) {
    status = null_argument({kFunction, "forked", "a place for the sequence"});
  }
  return status.ok() ? store(table->table.fork(to_cpp(seq), length), forked) : status;
}

Status append(quire_page_table* table, quire_seq_id seq, std::int32_t n, quire_copy_plan* copies) {
  constexpr std::string_view kFunction = "quire_page_table_append";
  Status status = check_handle(kFunction, "table", table);
  if (status.ok()) status = check_handle(kFunction, "copies", copies);
  return status.ok() ? table->table.append(to_cpp(seq), n, copies->ops) : status;
}

Status accept_tree(quire_page_table* table, quire_seq_id seq, std::int32_t length,
                   std::span<const std::int32_t> path, quire_copy_plan* copies) {
  constexpr std::string_view kFunction = "quire_page_table_accept_tree";
  Status status = check_handle(kFunction, "table", table);
  if (status.ok() && path.data() == nullptr && !path.empty()) {
    status = null_argument({kFunction, "path", fmt::format("int32 [{}]", path.size())});
  }
  if (status.ok()) status = check_handle(kFunction, "copies", copies);
  if (!status.ok()) return status;
  return table->table.accept_tree(to_cpp(seq), length, path, copies->ops);
}

Status pages_of(const quire_page_table* table, quire_seq_id seq, const std::int32_t** pages,
                std::size_t* count) {
  constexpr std::string_view kFunction = "quire_page_table_pages";
  Status status = check_handle(kFunction, "table", table);
  if (status.ok() && pages == nullptr) {
    status = null_argument({kFunction, "pages", "a place for the pages"});
  }
  if (status.ok() && count == nullptr) {
    status = null_argument({kFunction, "count", "a place for their number"});
  }
  if (!status.ok()) return status;
  if (!table->table.contains(to_cpp(seq))) {
    return {ErrorCode::kBadHandle,
            fmt::format("[{}] seq: expected a live sequence, got slot {} of generation {}",
                        kFunction, seq.slot, seq.generation)};
  }
  const std::span<const PageId> span = table->table.pages(to_cpp(seq));
  *pages = span.data();
  *count = span.size();
  return {};
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_page_pool_create(const quire_page_pool_spec* spec,
                                    quire_page_pool** pool) noexcept {
  return quire::c::guarded([&] { return quire::c::create_pool(spec, pool); });
}

void quire_page_pool_destroy(quire_page_pool* pool) noexcept { quire::c::release(pool); }

int32_t quire_page_pool_num_free(const quire_page_pool* pool) noexcept {
  return quire::c::number_of("quire_page_pool_num_free", "pool", pool, quire::c::kNone,
                             [&] { return pool->pool.num_free(); });
}

int32_t quire_page_pool_num_used(const quire_page_pool* pool) noexcept {
  return quire::c::number_of("quire_page_pool_num_used", "pool", pool, quire::c::kNone,
                             [&] { return pool->pool.num_used(); });
}

int32_t quire_page_pool_ref_count(const quire_page_pool* pool, int32_t page) noexcept {
  return quire::c::number_of("quire_page_pool_ref_count", "pool", pool, quire::c::kNone,
                             [&] { return pool->pool.ref_count(page); });
}

quire_status quire_page_pool_allocate(quire_page_pool* pool, int32_t* pages,
                                      size_t count) noexcept {
  return quire::c::with_pages("quire_page_pool_allocate", pool, pages, count,
                              [](quire::PagePool& on, auto list) { return on.allocate(list); });
}

quire_status quire_page_pool_retain(quire_page_pool* pool, const int32_t* pages,
                                    size_t count) noexcept {
  return quire::c::with_pages("quire_page_pool_retain", pool, pages, count,
                              [](quire::PagePool& on, auto list) { return on.retain(list); });
}

quire_status quire_page_pool_release(quire_page_pool* pool, const int32_t* pages,
                                     size_t count) noexcept {
  return quire::c::with_pages("quire_page_pool_release", pool, pages, count,
                              [](quire::PagePool& on, auto list) { return on.release(list); });
}

quire_status quire_page_pool_check(const quire_page_pool* pool) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_page_pool_check", "pool", pool);
    return status.ok() ? pool->pool.check() : status;
  });
}

quire_status quire_copy_plan_create(quire_copy_plan** plan) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_result_handle("quire_copy_plan_create", "plan", plan);
    if (status.ok()) *plan = new quire_copy_plan{};
    return status;
  });
}

void quire_copy_plan_destroy(quire_copy_plan* plan) noexcept { quire::c::release(plan); }

quire_status quire_copy_plan_clear(quire_copy_plan* plan) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_copy_plan_clear", "plan", plan);
    if (status.ok()) plan->ops.clear();
    return status;
  });
}

size_t quire_copy_plan_size(const quire_copy_plan* plan) noexcept {
  return quire::c::number_of("quire_copy_plan_size", "plan", plan, size_t{0},
                             [&] { return plan->ops.size(); });
}

const quire_copy_op* quire_copy_plan_ops(const quire_copy_plan* plan) noexcept {
  const quire_copy_op* none = nullptr;
  return quire::c::number_of("quire_copy_plan_ops", "plan", plan, none, [&] {
    return reinterpret_cast<const quire_copy_op*>(plan->ops.data());
  });
}

quire_status quire_page_table_create(quire_page_pool* pool, const quire_page_table_spec* spec,
                                     quire_page_table** table) noexcept {
  return quire::c::guarded([&] { return quire::c::create_table(pool, spec, table); });
}

void quire_page_table_destroy(quire_page_table* table) noexcept { quire::c::release(table); }

quire_status quire_page_table_create_seq(quire_page_table* table, quire_seq_id* seq) noexcept {
  return quire::c::guarded([&] { return quire::c::create_seq(table, seq); });
}

quire_status quire_page_table_fork_seq(quire_page_table* table, quire_seq_id seq, int32_t length,
                                       quire_seq_id* forked) noexcept {
  return quire::c::guarded([&] { return quire::c::fork_seq(table, seq, length, forked); });
}

quire_status quire_page_table_append(quire_page_table* table, quire_seq_id seq, int32_t n,
                                     quire_copy_plan* copies) noexcept {
  return quire::c::guarded([&] { return quire::c::append(table, seq, n, copies); });
}

quire_status quire_page_table_truncate(quire_page_table* table, quire_seq_id seq,
                                       int32_t length) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_page_table_truncate", "table", table);
    return status.ok() ? table->table.truncate(quire::c::to_cpp(seq), length) : status;
  });
}

quire_status quire_page_table_slide(quire_page_table* table, quire_seq_id seq,
                                    int32_t position) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_page_table_slide", "table", table);
    return status.ok() ? table->table.slide(quire::c::to_cpp(seq), position) : status;
  });
}

int32_t quire_page_table_num_holes(const quire_page_table* table, quire_seq_id seq) noexcept {
  return quire::c::number_of("quire_page_table_num_holes", "table", table, quire::c::kNone,
                             [&] { return table->table.num_holes(quire::c::to_cpp(seq)); });
}

quire_status quire_page_table_accept_tree(quire_page_table* table, quire_seq_id seq, int32_t length,
                                          const int32_t* path, size_t count,
                                          quire_copy_plan* copies) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::accept_tree(table, seq, length, {path, count}, copies); });
}

quire_status quire_page_table_destroy_seq(quire_page_table* table, quire_seq_id seq) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_page_table_destroy_seq", "table", table);
    return status.ok() ? table->table.destroy(quire::c::to_cpp(seq)) : status;
  });
}

int32_t quire_page_table_num_seqs(const quire_page_table* table) noexcept {
  return quire::c::number_of("quire_page_table_num_seqs", "table", table, quire::c::kNone,
                             [&] { return table->table.num_seqs(); });
}

int32_t quire_page_table_length(const quire_page_table* table, quire_seq_id seq) noexcept {
  return quire::c::number_of("quire_page_table_length", "table", table, quire::c::kNone,
                             [&] { return table->table.length(quire::c::to_cpp(seq)); });
}

quire_status quire_page_table_pages(const quire_page_table* table, quire_seq_id seq,
                                    const int32_t** pages, size_t* count) noexcept {
  return quire::c::guarded([&] { return quire::c::pages_of(table, seq, pages, count); });
}

int64_t quire_page_table_slot(const quire_page_table* table, quire_seq_id seq,
                              int32_t position) noexcept {
  return quire::c::number_of("quire_page_table_slot", "table", table, int64_t{quire::c::kNone},
                             [&] { return table->table.slot(quire::c::to_cpp(seq), position); });
}

int32_t quire_page_table_pages_needed(const quire_page_table* table, quire_seq_id seq,
                                      int32_t n) noexcept {
  return quire::c::number_of("quire_page_table_pages_needed", "table", table, quire::c::kNone,
                             [&] { return table->table.pages_needed(quire::c::to_cpp(seq), n); });
}

int32_t quire_page_table_reclaimable_pages(const quire_page_table* table,
                                           quire_seq_id seq) noexcept {
  return quire::c::number_of("quire_page_table_reclaimable_pages", "table", table, quire::c::kNone,
                             [&] { return table->table.reclaimable_pages(quire::c::to_cpp(seq)); });
}

quire_status quire_page_table_check(const quire_page_table* table) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_page_table_check", "table", table);
    return status.ok() ? table->table.check() : status;
  });
}

}  // extern "C"
