// SPDX-License-Identifier: Apache-2.0
// Batch builders, and the batches that they stage.
#include "quire/batch_builder.hpp"

#include <fmt/format.h>

#include <cstddef>
#include <optional>

#include "c/convert.hpp"
#include "c/serving.hpp"
#include "c/structs.hpp"

namespace quire::c {
namespace {

static_assert(BatchShape::kOmitted == QUIRE_OMITTED);
static_assert(kStagingAlignment == QUIRE_STAGING_ALIGNMENT);
static_assert(kMaxPrefixLevels == QUIRE_MAX_PREFIX_LEVELS);
// Arrays of these are read in place: no memory is taken for a copy of them.
static_assert(sizeof(quire_batch_entry) == sizeof(BatchEntry));
static_assert(offsetof(quire_batch_entry, new_tokens) == offsetof(BatchEntry, new_tokens));

BatchShape cpp_shape(const quire_batch_shape& shape) {
  return {.num_seqs = shape.num_seqs,
          .total_q = shape.total_q,
          .pages_per_seq = shape.pages_per_seq,
          .total_pages = shape.total_pages};
}

quire_batch_shape c_shape(const BatchShape& shape) {
  return {shape.num_seqs, shape.total_q, shape.pages_per_seq, shape.total_pages};
}

quire_staged_batch c_staged(const StagedBatch& staged) {
  const bool csr = staged.shape.total_pages != BatchShape::kOmitted;
  const bool dense = staged.shape.pages_per_seq != BatchShape::kOmitted;
  return {.struct_size = 0,
          .shape = c_shape(staged.shape),
          .num_seqs = staged.num_seqs,
          .num_tokens = staged.num_tokens,
          .max_q_len = staged.max_q_len,
          .max_kv_len = staged.max_kv_len,
          .bytes = staged.bytes.data(),
          .num_bytes = staged.bytes.size(),
          .qo_indptr = staged.qo_indptr.data(),
          .kv_len = staged.kv_len.data(),
          .kv_page_indptr = csr ? staged.kv_page_indptr.data() : nullptr,
          .kv_last_page_len = csr ? staged.kv_last_page_len.data() : nullptr,
          .positions = staged.positions.data(),
          .slot_mapping = staged.slot_mapping.data(),
          .kv_page_indices = csr ? staged.kv_page_indices.data() : nullptr,
          .page_table = dense ? staged.page_table.data() : nullptr};
}

StagedBatch cpp_staged(const quire_staged_batch& staged) {
  const auto count = [](std::int32_t size) { return static_cast<std::size_t>(size); };
  const std::size_t seqs = count(staged.shape.num_seqs);
  StagedBatch batch;
  batch.shape = cpp_shape(staged.shape);
  batch.bytes = {static_cast<const std::byte*>(staged.bytes), staged.num_bytes};
  batch.qo_indptr = {staged.qo_indptr, seqs + 1};
  batch.kv_len = {staged.kv_len, seqs};
  batch.positions = {staged.positions, count(staged.shape.total_q)};
  batch.slot_mapping = {staged.slot_mapping, count(staged.shape.total_q)};
  if (staged.kv_page_indptr != nullptr) {
    batch.kv_page_indptr = {staged.kv_page_indptr, seqs + 1};
    batch.kv_last_page_len = {staged.kv_last_page_len, seqs};
    batch.kv_page_indices = {staged.kv_page_indices, count(staged.shape.total_pages)};
  }
  if (staged.page_table != nullptr) {
    batch.page_table = {staged.page_table, seqs * count(staged.shape.pages_per_seq)};
  }
  return batch;
}

quire_tensor c_tensor(const TensorView& view) {
  quire_tensor tensor = QUIRE_TENSOR_NONE;
  if (!view.given()) return tensor;
  tensor.data = const_cast<void*>(view.data);  // quire writes only where a parameter says so
  tensor.dtype = static_cast<quire_dtype>(view.dtype);
  tensor.rank = view.rank;
  tensor.device = to_c(view.device);
  for (std::size_t axis = 0; axis < QUIRE_MAX_RANK; ++axis) {
    tensor.shape[axis] = view.shape[axis];
    tensor.strides[axis] = view.strides[axis];
  }
  return tensor;
}

Status read_staged(std::string_view function, const quire_staged_batch* given, StagedBatch& out) {
  quire_staged_batch known;
  Status status = read_struct(function, "staged", given, known);
  if (!status.ok()) return status;
  if (known.bytes == nullptr) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] staged: expected what quire_batch_builder_build wrote, got nothing",
                        function)};
  }
  out = cpp_staged(known);
  return {};
}

Status create(const quire_page_table* table, quire_batch_builder** out) {
  constexpr std::string_view kFunction = "quire_batch_builder_create";
  Status status = check_result_handle(kFunction, "builder", out);
  if (status.ok()) status = check_handle(kFunction, "table", table);
  if (status.ok()) *out = new quire_batch_builder{.builder = BatchBuilder(table->table)};
  return status;
}

Status check_entries(std::string_view function, const quire_batch_builder* builder,
                     const quire_batch_entry* entries, std::size_t count) {
  Status status = check_handle(function, "builder", builder);
  return status.ok() ? check_array(function, "entries", "quire_batch_entry", entries, count)
                     : status;
}

std::span<const BatchEntry> in_place(const quire_batch_entry* entries, std::size_t count) {
  return {reinterpret_cast<const BatchEntry*>(entries), count};
}

Status tight_shape(quire_batch_builder* builder, const quire_batch_entry* entries,
                   std::size_t count, quire_batch_shape* shape) {
  constexpr std::string_view kFunction = "quire_batch_builder_tight_shape";
  Status status = check_entries(kFunction, builder, entries, count);
  if (status.ok()) status = check_place(kFunction, "shape", "a quire_batch_shape", shape);
  if (!status.ok()) return status;
  const Result<BatchShape> tight = builder->builder.tight_shape(in_place(entries, count));
  if (tight.ok()) *shape = c_shape(*tight);
  return tight.status();
}

// What both ways of staging are given.
struct Staging {
  quire_batch_builder* builder;
  const quire_batch_entry* entries;
  std::size_t count;
  const quire_batch_shape* shape;
  std::span<std::byte> bytes;
  quire_staged_batch* staged;

  [[nodiscard]] Status check(std::string_view function) const {
    quire_staged_batch known;
    Status status = check_entries(function, builder, entries, count);
    if (status.ok()) status = check_array(function, "staging", "bytes", bytes.data(), bytes.size());
    // A struct of a wrong size is refused before the block is written.
    return status.ok() ? read_struct(function, "staged", staged, known) : status;
  }
  Status hand_over(std::string_view function, const Result<StagedBatch>& batch) const {
    return batch.ok() ? write_struct(function, "staged", c_staged(*batch), staged) : batch.status();
  }
};

Status build(const Staging& staging) {
  constexpr std::string_view kFunction = "quire_batch_builder_build";
  if (Status status = staging.check(kFunction); !status.ok()) return status;
  BatchBuilder& builder = staging.builder->builder;
  const std::span<const BatchEntry> list = in_place(staging.entries, staging.count);
  return staging.hand_over(kFunction,
                           staging.shape != nullptr
                               ? builder.build(list, cpp_shape(*staging.shape), staging.bytes)
                               : builder.build(list, staging.bytes));
}

Status update(const Staging& staging) {
  constexpr std::string_view kFunction = "quire_batch_builder_update";
  Status status = staging.check(kFunction);
  if (status.ok()) status = check_place(kFunction, "shape", "a quire_batch_shape", staging.shape);
  if (!status.ok()) return status;
  return staging.hand_over(
      kFunction, staging.builder->builder.update(in_place(staging.entries, staging.count),
                                                 cpp_shape(*staging.shape), staging.bytes));
}

Status find_prefixes(quire_batch_builder* builder, const quire_batch_entry* entries,
                     std::size_t count, std::int32_t num_seqs, std::int32_t* leaders,
                     std::int32_t* pages) {
  constexpr std::string_view kFunction = "quire_batch_builder_find_prefixes";
  Status status = check_entries(kFunction, builder, entries, count);
  if (status.ok() && num_seqs < 0) {
    status = {ErrorCode::kInvalidArgument,
              fmt::format("[{}] num_seqs: expected at least 0, got {}", kFunction, num_seqs)};
  }
  const std::size_t size = kMaxPrefixLevels * static_cast<std::size_t>(num_seqs);
  if (status.ok()) status = check_array(kFunction, "leaders", "int32_t", leaders, size);
  if (status.ok()) status = check_array(kFunction, "pages", "int32_t", pages, size);
  return status.ok() ? builder->builder.find_prefixes(in_place(entries, count), {leaders, size},
                                                      {pages, size})
                     : status;
}

Status as_batch(const quire_staged_batch* staged, const void* base, quire_device device,
                std::int32_t csr, quire_batch* batch) {
  constexpr std::string_view kFunction = "quire_staged_batch_as_batch";
  StagedBatch known;
  Device on;
  Status status = read_staged(kFunction, staged, known);
  if (status.ok()) status = read_device(kFunction, device, on);
  if (!status.ok()) return status;
  const std::int32_t pages = csr != 0 ? known.shape.total_pages : known.shape.pages_per_seq;
  if (pages == BatchShape::kOmitted) {
    return {
        ErrorCode::kInvalidArgument,
        fmt::format("[{}] csr: expected the table that was staged, got {} for the {} one, which "
                    "was omitted",
                    kFunction, csr, csr != 0 ? "CSR" : "dense")};
  }
  const Batch view = csr != 0 ? known.csr(base, on) : known.dense(base, on);
  quire_batch value = QUIRE_BATCH_INIT;
  value.qo_indptr = c_tensor(view.qo_indptr);
  value.kv_len = c_tensor(view.kv_len);
  value.page_table = c_tensor(view.page_table);
  value.kv_page_indptr = c_tensor(view.kv_page_indptr);
  value.kv_page_indices = c_tensor(view.kv_page_indices);
  value.kv_last_page_len = c_tensor(view.kv_last_page_len);
  return write_struct(kFunction, "batch", value, batch);
}

Status slots(const quire_staged_batch* staged, const void* base, quire_device device,
             quire_tensor* out) {
  constexpr std::string_view kFunction = "quire_staged_batch_slots";
  StagedBatch known;
  Device on;
  Status status = read_staged(kFunction, staged, known);
  if (status.ok()) status = read_device(kFunction, device, on);
  if (status.ok()) status = check_place(kFunction, "slots", "a quire_tensor", out);
  if (status.ok()) *out = c_tensor(known.slots(base, on));
  return status;
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_batch_builder_create(const quire_page_table* table,
                                        quire_batch_builder** builder) noexcept {
  return quire::c::guarded([&] { return quire::c::create(table, builder); });
}

void quire_batch_builder_destroy(quire_batch_builder* builder) noexcept {
  quire::c::release(builder);
}

size_t quire_staging_size(quire_batch_shape shape) noexcept {
  return quire::BatchBuilder::staging_size(quire::c::cpp_shape(shape));
}

quire_status quire_batch_builder_tight_shape(quire_batch_builder* builder,
                                             const quire_batch_entry* entries, size_t count,
                                             quire_batch_shape* shape) noexcept {
  return quire::c::guarded([&] { return quire::c::tight_shape(builder, entries, count, shape); });
}

quire_status quire_batch_builder_build(quire_batch_builder* builder,
                                       const quire_batch_entry* entries, size_t count,
                                       const quire_batch_shape* shape, void* staging,
                                       size_t staging_bytes, quire_staged_batch* staged) noexcept {
  return quire::c::guarded([&] {
    return quire::c::build({builder,
                            entries,
                            count,
                            shape,
                            {static_cast<std::byte*>(staging), staging_bytes},
                            staged});
  });
}

quire_status quire_batch_builder_update(quire_batch_builder* builder,
                                        const quire_batch_entry* entries, size_t count,
                                        const quire_batch_shape* shape, void* staging,
                                        size_t staging_bytes, quire_staged_batch* staged) noexcept {
  return quire::c::guarded([&] {
    return quire::c::update({builder,
                             entries,
                             count,
                             shape,
                             {static_cast<std::byte*>(staging), staging_bytes},
                             staged});
  });
}

quire_status quire_batch_builder_find_prefixes(quire_batch_builder* builder,
                                               const quire_batch_entry* entries, size_t count,
                                               int32_t num_seqs, int32_t* leaders,
                                               int32_t* pages) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::find_prefixes(builder, entries, count, num_seqs, leaders, pages); });
}

quire_status quire_staged_batch_as_batch(const quire_staged_batch* staged, const void* base,
                                         quire_device device, int32_t csr,
                                         quire_batch* batch) noexcept {
  return quire::c::guarded([&] { return quire::c::as_batch(staged, base, device, csr, batch); });
}

quire_status quire_staged_batch_slots(const quire_staged_batch* staged, const void* base,
                                      quire_device device, quire_tensor* slots) noexcept {
  return quire::c::guarded([&] { return quire::c::slots(staged, base, device, slots); });
}

}  // extern "C"
