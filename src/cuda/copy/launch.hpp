// SPDX-License-Identifier: Apache-2.0
/// @file
/// Plans of any length in caches of any number, cut into launches.
#pragma once

#include <algorithm>
#include <span>

#include "core/copies.hpp"
#include "cuda/copy/part.hpp"

namespace quire::cuda {

/// Bytes that all rows allow to be moved at once: 16 or 1.
std::int64_t piece_bytes(const core::CopyRows& rows) noexcept;

/// Up to `kMaxCaches` caches, and the launches that execute a plan in them.
class CopyLaunch {
 public:
  explicit CopyLaunch(KvLayout layout) noexcept { params_.layout = layout; }

  [[nodiscard]] bool full() const noexcept { return params_.num_caches == kMaxCaches; }

  /// @param rows  Not empty, of at most `kMaxPagePieces` pieces a page, where the device sees them.
  void add(const core::CopyRows& rows) noexcept;

  /// Calls `launch` with the parameters of one launch after another, which have to run in this
  /// order, until one fails.
  /// @param one_cache  Whether ops read the pages that they write.
  /// @param launch     Returns its error, or `cudaSuccess`.
  template <typename Launch>
  cudaError_t execute(std::span<const CopyOp> copies, bool one_cache, Launch launch) {
    cudaError_t error = cudaSuccess;
    while (error == cudaSuccess && !copies.empty() && params_.num_caches > 0) {
      const auto most = copies.first(std::min<std::size_t>(copies.size(), kMaxOps));
      const auto ops = most.first(core::independent_prefix(most, one_cache));
      set_ops(ops);
      error = launch(params_);
      copies = copies.subspan(ops.size());
    }
    return error;
  }

 private:
  void set_ops(std::span<const CopyOp> ops) noexcept;

  CopyParams params_;
  std::int64_t pieces_of_token_ = 0;  ///< of the cache that has most
};

}  // namespace quire::cuda
