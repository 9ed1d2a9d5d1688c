// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "device/place.hpp"
#include "quire/attention.hpp"
#include "quire/executor.hpp"

namespace quire::tool {

/// Lengths of one request of a batch.
struct RequestLengths {
  std::int32_t queries = 0;
  std::int32_t keys = 0;  ///< Those of the new tokens included.
};

/// A batch to hold against the oracle.
struct CheckBatch {
  AttentionSpec spec;
  std::vector<RequestLengths> requests;
  std::uint64_t seed = 0;  ///< Of values, masks and the order of the pages.
};

/// How one request fared.
struct RequestVerdict {
  RequestLengths lengths;
  double max_error = 0;
  std::string complaint;  ///< Empty if it matches.
};

/// @return Requests of all kinds: empty, one token, around the edges of pages, decode, chunk,
/// prompt.
std::vector<RequestLengths> random_requests(Random& random, std::int32_t page_size);

/// Runs a batch and compares every row with the oracle. The pages are shuffled and have holes
/// between them; what must not be read is poisoned: free pages, unused ends of pages, table entries
/// beyond the lengths. New K/V go through `append`, and q has padding rows.
/// @param place     Where the batch is computed. The oracle works on the host.
/// @param executor  Of a CPU; null takes the default.
std::vector<RequestVerdict> run_check(const CheckBatch& batch, Place& place, Executor* executor);

}  // namespace quire::tool
