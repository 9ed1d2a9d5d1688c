// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "quire/recorder.hpp"

namespace quire::tool {

/// A distribution of seconds.
struct Percentiles {
  std::size_t count = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};

/// What those who asked had to wait for.
struct Latencies {
  Percentiles first_token;    ///< From submission to the first token.
  Percentiles per_token;      ///< Between two tokens of a request, on its average.
  Percentiles longest_gap;    ///< Between two tokens of a request, at its worst.
  Percentiles whole_request;  ///< From submission to the end.
};

/// @return Of the samples that are numbers.
Percentiles percentiles_of(std::vector<double> samples);
Latencies latencies_of(const Records<RequestRecord>& ended);

}  // namespace quire::tool
