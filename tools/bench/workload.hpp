// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "bench/ceilings.hpp"
#include "bench/course.hpp"
#include "quire/executor.hpp"
#include "quire/tensor.hpp"

namespace quire::tool {

struct MeasureOptions {
  DType dtype = DType::kBFloat16;
  DType kv_dtype = DType::kBFloat16;
  double min_seconds = 0.5;  ///< A workload is repeated at least so long …
  std::uint64_t seed = 1;
};

/// Times of one workload.
struct Measurement {
  std::string kernel;
  std::int64_t repetitions = 0;
  double us_median = 0;
  double us_p5 = 0;
  double us_p95 = 0;
  double us_schedule = 0;  ///< Median of `Attention::schedule`, once per step.
  double bytes = 0;
  double flop = 0;

  [[nodiscard]] double gb_per_s() const;
  [[nodiscard]] double gflop_per_s() const;
  /// @return Time that the nearer ceiling would take, of the median time, in per cent.
  [[nodiscard]] double percent_of(const Ceilings& ceilings) const;
  /// @return True if reading, not arithmetic, is the nearer ceiling.
  [[nodiscard]] bool bound_by_reading(const Ceilings& ceilings) const;
};

/// Measures a workload on the CPU. Before each repetition the caches are emptied by a stream.
Measurement measure(const Workload& workload, const MeasureOptions& options, Executor& executor,
                    Stream& stream);

}  // namespace quire::tool
