// SPDX-License-Identifier: Apache-2.0
#include "replay/latency.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/statistics.hpp"

namespace quire::tool {

Percentiles percentiles_of(std::vector<double> samples) {
  constexpr double kP90 = 0.9;
  constexpr double kP99 = 0.99;
  std::erase_if(samples, [](double sample) { return std::isnan(sample); });
  return {samples.size(), quantile(samples, 0.5), quantile(samples, kP90), quantile(samples, kP99),
          quantile(samples, 1)};
}

Latencies latencies_of(const Records<RequestRecord>& ended) {
  std::vector<double> first_token, per_token, longest_gap, whole_request;
  for (std::size_t i = 0; i < ended.size(); ++i) {
    const RequestRecord& life = ended[i];
    first_token.push_back(life.time_to_first_token());
    per_token.push_back(life.time_per_token());
    if (life.new_tokens > 1) longest_gap.push_back(life.longest_gap);
    whole_request.push_back(life.finished - life.submitted);
  }
  return {percentiles_of(std::move(first_token)), percentiles_of(std::move(per_token)),
          percentiles_of(std::move(longest_gap)), percentiles_of(std::move(whole_request))};
}

}  // namespace quire::tool
