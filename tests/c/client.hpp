// SPDX-License-Identifier: Apache-2.0
/// @file
/// A small valid problem behind the C ABI, whose parts tests then spoil.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "quire/quire.h"

namespace quire::c_test {

inline constexpr quire_device kCpu = {QUIRE_DEVICE_CPU, 0};

inline quire_tensor packed(const void* data, quire_dtype dtype,
                           std::initializer_list<std::int64_t> shape) {
  return quire_tensor_packed(data, dtype, kCpu, static_cast<std::int32_t>(shape.size()),
                             shape.begin());
}

/// Zeroed memory, aligned as workspaces are.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::size_t bytes) : memory_(bytes + QUIRE_WORKSPACE_ALIGNMENT) {}
  [[nodiscard]] void* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + (QUIRE_WORKSPACE_ALIGNMENT - address % QUIRE_WORKSPACE_ALIGNMENT);
  }

 private:
  std::vector<unsigned char> memory_;
};

/// Two requests, one decoding at length 5 and one of three new tokens, on pages of four tokens; two
/// query heads, one kv head, head dim 8, float32.
class Client {
 public:
  static constexpr std::int64_t kSeqs = 2;
  static constexpr std::int64_t kTotalQ = 4;
  static constexpr std::int64_t kQoHeads = 2;
  static constexpr std::int64_t kKvHeads = 1;
  static constexpr std::int64_t kDim = 8;
  static constexpr std::int64_t kPages = 4;
  static constexpr std::int64_t kPageSize = 4;
  static constexpr std::int64_t kWidth = 2;

  Client() {
    spec.num_qo_heads = static_cast<std::int32_t>(kQoHeads);
    spec.num_kv_heads = static_cast<std::int32_t>(kKvHeads);
    spec.head_dim_qk = static_cast<std::int32_t>(kDim);
    spec.q_dtype = spec.kv_dtype = QUIRE_FLOAT32;
    spec.page_size = static_cast<std::int32_t>(kPageSize);
    limits.max_num_seqs = static_cast<std::int32_t>(kSeqs);
    limits.max_total_q = static_cast<std::int32_t>(kTotalQ);
    limits.max_kv_len = static_cast<std::int32_t>(kWidth * kPageSize);
    batch.qo_indptr = packed(qo_indptr.data(), QUIRE_INT32, {kSeqs + 1});
    batch.kv_len = packed(kv_len.data(), QUIRE_INT32, {kSeqs});
    batch.page_table = packed(page_table.data(), QUIRE_INT32, {kSeqs, kWidth});
    tensors.q = packed(q.data(), QUIRE_FLOAT32, {kTotalQ, kQoHeads, kDim});
    tensors.k = packed(k.data(), QUIRE_FLOAT32, {kPages, kPageSize, kKvHeads, kDim});
    tensors.v = packed(v.data(), QUIRE_FLOAT32, {kPages, kPageSize, kKvHeads, kDim});
    tensors.o = packed(o.data(), QUIRE_FLOAT32, {kTotalQ, kQoHeads, kDim});
    tensors.lse = packed(lse.data(), QUIRE_FLOAT32, {kTotalQ, kQoHeads});
    append.k = packed(new_k.data(), QUIRE_FLOAT32, {kTotalQ, kKvHeads, kDim});
    append.v = packed(new_v.data(), QUIRE_FLOAT32, {kTotalQ, kKvHeads, kDim});
    append.k_cache = tensors.k;
    append.v_cache = tensors.v;
    merge.o_parts = packed(o_parts.data(), QUIRE_FLOAT32, {2, kTotalQ, kQoHeads, kDim});
    merge.lse_parts = packed(lse_parts.data(), QUIRE_FLOAT32, {2, kTotalQ, kQoHeads});
    merge.o = tensors.o;
    merge.lse = tensors.lse;
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { quire_attention_destroy(attention); }

  /// Makes the attention and its workspaces.
  void create() {
    quire_attention* made = nullptr;
    ASSERT_EQ(quire_attention_create(kCpu, &spec, &limits, nullptr, &made), QUIRE_OK)
        << quire_last_error();
    adopt(made);
  }
  /// Takes over an attention and makes its workspaces.
  void adopt(quire_attention* made) {
    attention = made;
    ASSERT_EQ(quire_attention_workspace_sizes(attention, &schedule_bytes, &scratch_bytes),
              QUIRE_OK);
    schedule_memory = std::make_unique<AlignedBytes>(schedule_bytes);
    scratch_memory = std::make_unique<AlignedBytes>(scratch_bytes);
  }
  quire_status schedule() {
    return quire_attention_schedule(attention, &batch, schedule_memory->data(), schedule_bytes,
                                    nullptr);
  }
  quire_status run() {
    return quire_attention_run(attention, &batch, &tensors, schedule_memory->data(), schedule_bytes,
                               scratch_memory->data(), scratch_bytes, nullptr);
  }

  quire_attention_spec spec = QUIRE_ATTENTION_SPEC_INIT;
  quire_batch_limits limits = QUIRE_BATCH_LIMITS_INIT;
  quire_batch batch = QUIRE_BATCH_INIT;
  quire_attention_tensors tensors = QUIRE_ATTENTION_TENSORS_INIT;
  quire_append_tensors append = QUIRE_APPEND_TENSORS_INIT;
  quire_merge_tensors merge = QUIRE_MERGE_TENSORS_INIT;
  quire_attention* attention = nullptr;
  std::size_t schedule_bytes = 0;
  std::size_t scratch_bytes = 0;
  std::unique_ptr<AlignedBytes> schedule_memory;
  std::unique_ptr<AlignedBytes> scratch_memory;

  std::array<std::int32_t, kSeqs + 1> qo_indptr{0, 1, 4};
  std::array<std::int32_t, kSeqs> kv_len{5, 3};
  std::array<std::int32_t, kSeqs * kWidth> page_table{2, 0, 3, QUIRE_NO_PAGE};
  std::array<float, kTotalQ * kQoHeads * kDim> q{};
  std::array<float, kPages * kPageSize * kKvHeads * kDim> k{};
  std::array<float, kPages * kPageSize * kKvHeads * kDim> v{};
  std::array<float, kTotalQ * kQoHeads * kDim> o{};
  std::array<float, kTotalQ * kQoHeads> lse{};
  std::array<float, kTotalQ * kKvHeads * kDim> new_k{};
  std::array<float, kTotalQ * kKvHeads * kDim> new_v{};
  std::array<float, 2 * kTotalQ * kQoHeads * kDim> o_parts{};
  std::array<float, 2 * kTotalQ * kQoHeads> lse_parts{};
};

}  // namespace quire::c_test
