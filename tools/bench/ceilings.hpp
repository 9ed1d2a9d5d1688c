// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

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

/// The instruction that most of a kernel's arithmetic is made of.
struct Arithmetic {
  std::string_view name;  ///< "fma", "vdpbf16ps" or "tdpbf16ps".
  /// Repeats it on registers alone. @param start  Not 0: sums that decay into denormals take a
  /// hundred times as long on some cores. @return Something that depends on all of it.
  float (*repeat)(std::size_t rounds, float start) = nullptr;
  double flop_per_round = 0;
};

/// @param kernel  As `Attention::kernel()` names it.
Arithmetic arithmetic_of(std::string_view kernel);

/// The parts of `arithmetic_of` that Highway has no operations for; x86 only.
Arithmetic pairs_of_bf16();
Arithmetic tiles_of_bf16();

/// What the CPU can do in this run, with the same threads as the kernels. Takes about half a second.
Ceilings measure_ceilings(Executor& executor, Stream& stream, const Arithmetic& arithmetic);

}  // namespace quire::tool
