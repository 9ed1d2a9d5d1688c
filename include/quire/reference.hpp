// SPDX-License-Identifier: Apache-2.0
/// @file
/// The oracle: the formula at the top of attention.hpp in double precision, one key after another.
/// Simple and slow on purpose; everything else is tested against it.
#pragma once

#include <cstdint>
#include <vector>

#include "quire/attention.hpp"
#include "quire/export.h"

namespace quire {
inline namespace v0 {

/// Attention of one row (one query, one head).
struct ReferenceRow {
  std::vector<double> o;  ///< [head_dim_vo]
  double lse = 0;         ///< natural log; −inf if no key is visible
};

/// Attention of a whole batch.
struct ReferenceResult {
  std::vector<double> o;    ///< [total_q, num_qo_heads, head_dim_vo], 0 in padding rows
  std::vector<double> lse;  ///< [total_q, num_qo_heads], −inf in padding rows
};

/// Computes one row. Reads only what the row needs: its q, its visible keys and their values.
/// `tensors.o` and `tensors.lse` are not used. Host memory only; allocates.
/// @param seq      Request, in [0, num_seqs).
/// @param query    Row of the request, in [0, qo_len).
/// @param qo_head  In [0, num_qo_heads).
/// @throws Error `kInvalidArgument` for a request, row or head outside its range.
[[nodiscard]] QUIRE_API ReferenceRow reference_attention_row(const AttentionSpec& spec,
                                                             const Batch& batch,
                                                             const AttentionTensors& tensors,
                                                             std::int32_t seq, std::int32_t query,
                                                             std::int32_t qo_head);

/// Computes every row. O(Σ qo_len · kv_len · num_qo_heads · head_dim), single-threaded.
/// @throws Error as `reference_attention_row`.
[[nodiscard]] QUIRE_API ReferenceResult reference_attention(const AttentionSpec& spec,
                                                            const Batch& batch,
                                                            const AttentionTensors& tensors);

}  // namespace v0
}  // namespace quire
