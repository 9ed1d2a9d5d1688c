// SPDX-License-Identifier: Apache-2.0
/// @file
/// The batches of the ladder, on the host: lengths and page tables, no keys and values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "problem.hpp"

namespace ladder {

/// A batch: one new token a request.
struct Workload {
  std::string name;
  std::string description;
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int num_pages = 0;   ///< Of the pool; more than the tables name.
  int max_blocks = 0;  ///< Entries of a request in the page table.
  std::vector<RequestInfo> requests{};
  std::vector<int> page_table{};  ///< [batch, max_blocks]; beyond a request's last page, rubbish

  [[nodiscard]] int batch() const { return static_cast<int>(requests.size()); }
  [[nodiscard]] int num_rows() const { return batch() * num_qo_heads; }
  /// Keys that the tables name, each once, however many requests share it.
  [[nodiscard]] std::int64_t distinct_tokens() const;
};

/// @param quick  Smaller ones, for a test.
std::vector<Workload> make_workloads(bool quick);

/// The same requests with one head.
Workload with_one_head(Workload workload);

/// A number for an element of q, k or v, a multiple of 1/64 in [−2, 2): exact in bf16 too, so that
/// one reference serves every step, and the same on host and device, so that neither has to store or
/// send it.
enum class NoiseOf : std::uint64_t { kQ, kK, kV };
inline constexpr float kNoiseMax = 2.0F;
__host__ __device__ inline float noise(NoiseOf tensor, std::int64_t element) {
  std::uint64_t x = static_cast<std::uint64_t>(element) * 4 + static_cast<std::uint64_t>(tensor);
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;  // a finaliser of hashes: mixes all bits
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return static_cast<float>(static_cast<int>(x >> 56) - 128) / 64.0F;
}

}  // namespace ladder
