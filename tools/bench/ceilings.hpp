// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "bench/measurement.hpp"
#include "common/buffer.hpp"
#include "quire/executor.hpp"

namespace quire::tool {

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

/// What the CPU can do in this run, with the same threads as the kernels; the arithmetic is float32
/// multiply-adds on registers. Takes about half a second.
Ceilings measure_ceilings(Executor& executor, Stream& stream);

}  // namespace quire::tool
