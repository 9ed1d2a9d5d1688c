// SPDX-License-Identifier: Apache-2.0
/// @file
/// Which keys of a tile a query sees, as bits. Causal, window, tree and full masks end here: no
/// kernel knows more of a mask than this word.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.hpp"
#include "schedule/sequence.hpp"

namespace quire::cpu {

/// Bits [0, n) set, 0 ≤ n ≤ 64.
constexpr std::uint64_t low_bits(std::int64_t n) {
  constexpr std::int64_t kBits = 64;
  return n >= kBits ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

/// The mask of a segment.
struct MaskOfRequest {
  const core::ProblemShape& shape;
  const core::BatchArrays& batch;
  schedule::Lengths lengths;
  std::int32_t first_row = 0;               // of q
  const std::uint8_t* full_mask = nullptr;  // the request's bits
};

/// @param lengths  Of the segment, whose keys are those of request `seq`: of a shared prefix, such
///   that all keys are earlier than the queries, which no tree hides.
inline MaskOfRequest mask_of_request(const core::ProblemShape& shape,
                                     const core::BatchArrays& batch, std::int32_t seq,
                                     schedule::Lengths lengths) {
  return {
      shape, batch, lengths, batch.qo_indptr[seq],
      batch.full_mask_indptr == nullptr ? nullptr : batch.full_mask + batch.full_mask_indptr[seq]};
}

/// Bits [first, first + count) of a row of words, 1 ≤ count ≤ 64. Touches no other word.
template <typename Word>
std::uint64_t extract_bits(const Word* words, std::int64_t first, std::int32_t count) {
  constexpr std::int64_t kWordBits = 8 * sizeof(Word);
  std::uint64_t bits = 0;
  for (std::int64_t at = first; at < first + count;) {
    const std::int64_t offset = at % kWordBits;
    bits |= static_cast<std::uint64_t>(words[at / kWordBits] >> offset) << (at - first);
    at += kWordBits - offset;
  }
  return bits & low_bits(count);
}

/// @return Bit j says whether `query` sees key `key` + j, for j in [0, count), 1 ≤ count ≤ 64.
inline std::uint64_t visibility(const MaskOfRequest& mask, std::int32_t query, std::int32_t key,
                                std::int32_t count) {
  const std::int64_t position = mask.lengths.position(query);
  std::uint64_t word = low_bits(count);
  if (mask.shape.mask == Mask::kCausal) {
    word &= low_bits(std::clamp<std::int64_t>(position + 1 - key, 0, count));
  }
  if (mask.shape.window_left >= 0) {
    const std::int64_t hidden = position - mask.shape.window_left - key;
    word &= ~low_bits(std::clamp<std::int64_t>(hidden, 0, count));
  }
  if (mask.shape.mask == Mask::kTree) {
    const std::int32_t first_new = mask.lengths.kv_len - mask.lengths.qo_len;
    const std::int32_t old = std::clamp(first_new - key, 0, count);
    if (old < count) {
      const std::uint32_t* row =
          mask.batch.tree_mask +
          (mask.first_row + static_cast<std::int64_t>(query)) * mask.batch.tree_mask_stride;
      const std::uint64_t seen = extract_bits(row, key + old - first_new, count - old);
      word &= low_bits(old) | (seen << old);
    }
  }
  if (mask.shape.mask == Mask::kFull) {
    const std::int64_t first = static_cast<std::int64_t>(query) * mask.lengths.kv_len + key;
    word &= extract_bits(mask.full_mask, first, count);
  }
  return word;
}

}  // namespace quire::cpu
