// SPDX-License-Identifier: Apache-2.0
/// @file
/// How copies of pages are cut among threads; runs on the host as well, where it is tested.
///
/// An op in one cache moves tokens · heads · row_bytes bytes, in pieces of 16 bytes where all rows
/// allow it. A part is `kPartPieces` of them, in the order of the destination's memory: neighbours
/// among the threads move neighbours.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/copies.hpp"
#include "schedule/host_device.hpp"

namespace quire::cuda {

inline constexpr std::uint32_t kCopyThreads = 256;
/// All are read before the first is written: that many reads of a thread are on their way.
inline constexpr std::uint32_t kPiecesPerThread = 4;
inline constexpr std::uint32_t kPartPieces = kCopyThreads * kPiecesPerThread;

/// Ops and caches of one launch: what fits into 4 KiB of kernel parameters.
inline constexpr std::uint32_t kMaxOps = 96;
inline constexpr std::uint32_t kMaxCaches = 24;
/// Pieces of a page, so that the parts of a launch are counted by 31 bits.
inline constexpr std::int64_t kMaxPagePieces = std::int64_t{1} << 29;
static_assert(kMaxOps * kMaxCaches * (kMaxPagePieces / kPartPieces) < (std::int64_t{1} << 31));

/// One launch: ops that do not depend on one another, each in every cache.
struct CopyParams {
  core::CopyRows caches[kMaxCaches];
  CopyOp ops[kMaxOps];
  std::uint32_t num_caches = 0;
  std::uint32_t num_ops = 0;
  std::uint32_t parts_per_op = 0;    ///< of the largest page; smaller ones have empty parts
  std::uint32_t aligned_caches = 0;  ///< a bit per cache: 16 bytes at a time
  KvLayout layout = KvLayout::kNHD;

  QUIRE_HOST_DEVICE std::uint32_t num_parts() const { return num_caches * num_ops * parts_per_op; }
};
static_assert(sizeof(CopyParams) <= 4096);
static_assert(kMaxCaches <= 32, "aligned_caches has a bit for each");

/// Moves what one thread moves of one op in one cache.
template <typename Piece>
QUIRE_HOST_DEVICE inline void copy_pieces(const core::CopyRows& rows, const CopyOp& op,
                                          KvLayout layout, std::uint32_t part,
                                          std::uint32_t thread) {
  constexpr std::int64_t kPieceBytes = sizeof(Piece);
  const auto columns = static_cast<std::uint32_t>(rows.row_bytes / kPieceBytes);
  const auto heads = static_cast<std::uint32_t>(rows.num_heads);
  const auto tokens = static_cast<std::uint32_t>(op.tokens);
  const auto src_begin = static_cast<std::uint32_t>(op.src_begin);
  const auto dst_begin = static_cast<std::uint32_t>(op.dst_begin);
  const std::uint32_t count = tokens * heads * columns;
  const std::byte* const src = rows.src.data + op.src * rows.src.page_stride;
  std::byte* const dst = rows.dst.data + op.dst * rows.dst.page_stride;
  Piece pieces[kPiecesPerThread];
  Piece* to[kPiecesPerThread];
  for (std::uint32_t i = 0; i < kPiecesPerThread; ++i) {
    const std::uint32_t index = part * kPartPieces + i * kCopyThreads + thread;
    to[i] = nullptr;
    if (index >= count) continue;
    const std::uint32_t row = index / columns;
    const std::int64_t column = index % columns * kPieceBytes;
    const bool heads_inside = layout == KvLayout::kNHD;
    const std::uint32_t inner = heads_inside ? heads : tokens;
    const std::uint32_t token = heads_inside ? row / inner : row % inner;
    const std::uint32_t head = heads_inside ? row % inner : row / inner;
    pieces[i] = *reinterpret_cast<const Piece*>(
        src + std::int64_t{src_begin + token} * rows.src.token_stride +
        head * rows.src.head_stride + column);
    to[i] = reinterpret_cast<Piece*>(dst + std::int64_t{dst_begin + token} * rows.dst.token_stride +
                                     head * rows.dst.head_stride + column);
  }
  for (std::uint32_t i = 0; i < kPiecesPerThread; ++i) {
    if (to[i] != nullptr) *to[i] = pieces[i];
  }
}

/// Moves what thread `thread` moves of part `part` of the launch.
QUIRE_HOST_DEVICE inline void copy_part(const CopyParams& params, std::uint32_t part,
                                        std::uint32_t thread) {
  const std::uint32_t pair = part / params.parts_per_op;
  const std::uint32_t cache = pair / params.num_ops;
  const CopyOp& op = params.ops[pair % params.num_ops];
  const std::uint32_t part_of_op = part % params.parts_per_op;
  if ((params.aligned_caches >> cache & 1U) != 0) {
    copy_pieces<uint4>(params.caches[cache], op, params.layout, part_of_op, thread);
  } else {
    copy_pieces<std::byte>(params.caches[cache], op, params.layout, part_of_op, thread);
  }
}

}  // namespace quire::cuda
