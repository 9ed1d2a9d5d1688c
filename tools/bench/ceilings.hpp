// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "common/buffer.hpp"
#include "quire/executor.hpp"

namespace quire::tool {

/// What this machine can do in this run, with the same threads as the kernels.
struct Ceilings {
  double read_gb_per_s = 0;    ///< Streaming read of memory that no cache holds.
  double fma_gflop_per_s = 0;  ///< float32 multiply-adds on registers, two operations each.
};

/// Reads all of a buffer. Also empties the caches of everything else.
class Stream {
 public:
  explicit Stream(Executor& executor);
  /// @return Bytes read.
  std::size_t read();

 private:
  Executor& executor_;
  Buffer buffer_;
};

/// Takes about half a second.
Ceilings measure_ceilings(Executor& executor, Stream& stream);

}  // namespace quire::tool
