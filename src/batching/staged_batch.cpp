// SPDX-License-Identifier: Apache-2.0
// A batch in its block, as `Attention` and `append` take it.
#include <cstddef>

#include "quire/batch_builder.hpp"

namespace quire {
inline namespace v0 {
namespace {

// Where an array of the block is in a copy of the block.
const void* moved(const void* array, const std::byte* block, const void* base) noexcept {
  if (base == nullptr) return array;
  return static_cast<const std::byte*>(base) + (static_cast<const std::byte*>(array) - block);
}

}  // namespace

Batch StagedBatch::dense(const void* base, Device device) const noexcept {
  const auto at = [&](const void* array) { return moved(array, bytes.data(), base); };
  Batch batch;
  batch.qo_indptr = {at(qo_indptr.data()), DType::kInt32, {shape.num_seqs + 1}, device};
  batch.kv_len = {at(kv_len.data()), DType::kInt32, {shape.num_seqs}, device};
  if (shape.pages_per_seq != BatchShape::kOmitted) {
    batch.page_table = {
        at(page_table.data()), DType::kInt32, {shape.num_seqs, shape.pages_per_seq}, device};
  }
  return batch;
}

Batch StagedBatch::csr(const void* base, Device device) const noexcept {
  const auto at = [&](const void* array) { return moved(array, bytes.data(), base); };
  Batch batch;
  batch.qo_indptr = {at(qo_indptr.data()), DType::kInt32, {shape.num_seqs + 1}, device};
  batch.kv_len = {at(kv_len.data()), DType::kInt32, {shape.num_seqs}, device};
  if (shape.total_pages != BatchShape::kOmitted) {
    batch.kv_page_indptr = {at(kv_page_indptr.data()), DType::kInt32, {shape.num_seqs + 1}, device};
    batch.kv_page_indices = {
        at(kv_page_indices.data()), DType::kInt32, {shape.total_pages}, device};
  }
  return batch;
}

TensorView StagedBatch::slots(const void* base, Device device) const noexcept {
  return {moved(slot_mapping.data(), bytes.data(), base), DType::kInt64, {shape.total_q}, device};
}

}  // namespace v0
}  // namespace quire
