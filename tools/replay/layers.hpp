// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/buffer.hpp"
#include "common/noise.hpp"
#include "device/place.hpp"
#include "quire/attention.hpp"
#include "quire/batcher.hpp"
#include "quire/executor.hpp"
#include "quire/page_table.hpp"
#include "replay/options.hpp"

namespace quire::tool {

/// Seconds that the parts of a step took.
struct StepTimes {
  double planning = 0;    ///< Batcher and batch builder.
  double generating = 0;  ///< Random q, k and v, in place of the rest of a model.
  double appending = 0;   ///< K and V into their pages.
  double attention = 0;   ///< schedule and run.

  [[nodiscard]] double total() const { return planning + generating + appending + attention; }
};

/// Seconds since it was made or last asked.
class Stopwatch {
 public:
  Stopwatch();
  double lap();

 private:
  std::int64_t last_;
};

/// The attention layers of a model: their caches, and the tensors of a step. What a model would
/// compute as q, k and v is noise that depends on request, layer and position alone.
class Layers {
 public:
  /// @param max_kv_len  Longest request.
  Layers(const ReplayOptions& options, std::int32_t max_kv_len);

  /// Executes copies of pages, in K and V of each layer.
  void copy_pages(std::span<const CopyOp> copies);
  /// Executes copies between the device and the host, likewise.
  void transfer(const TransferPlan& plan);
  /// Computes a step: append, then attention, layer after layer.
  void run(const StepPlan& plan, const StagedBatch& batch, StepTimes& times);

  /// @return Defaults filled in.
  [[nodiscard]] const AttentionSpec& spec() const { return attention_.spec(); }
  [[nodiscard]] std::string_view kernel() const { return attention_.kernel(); }
  [[nodiscard]] const Noise& q_noise() const { return q_noise_; }
  /// Of new keys and values, before they are written to the cache.
  [[nodiscard]] const Noise& kv_noise() const { return kv_noise_; }
  /// float32, of the shape that the spec names; empty if there are none, or one per token.
  [[nodiscard]] std::span<const float> given_scales() const { return given_scales_; }
  [[nodiscard]] std::size_t cache_bytes() const { return 2 * caches_.size() * cache_bytes_each_; }
  /// @return The last layer's output: o_dtype [num_rows, num_qo_heads, head_dim].
  [[nodiscard]] const std::byte* output(std::int64_t num_rows) const;
  [[nodiscard]] std::int32_t last_layer() const {
    return static_cast<std::int32_t>(caches_.size()) - 1;
  }

 private:
  struct Cache {
    DeviceMemory k;
    DeviceMemory v;
    DeviceMemory k_scale;  // per token: float32 [pages, heads, page_size]
    DeviceMemory v_scale;
  };
  /// What has gone to the host, of the four parts of a layer's cache.
  using HostCache = std::array<Buffer, 4>;
  [[nodiscard]] static std::array<const DeviceMemory*, 4> parts_of(const Cache& cache) {
    return {&cache.k, &cache.v, &cache.k_scale, &cache.v_scale};
  }
  [[nodiscard]] DeviceMemory poisoned(std::size_t bytes) const;
  void copy_pages(std::span<const CopyOp> copies, const DeviceMemory& cache) const;
  void copy_scales(std::span<const CopyOp> copies, const DeviceMemory& scales) const;
  [[nodiscard]] MutableTensorView scales(const DeviceMemory& of_tokens) const;
  void generate(const StepPlan& plan, std::int32_t layer);
  void append_new_tokens(const Cache& cache, std::int64_t rows, const Batch& batch,
                         const TensorView& slots) const;
  /// @return Where the device finds the batch's block.
  const std::byte* show(const StagedBatch& staged);
  /// @return Seconds since the last lap, all work done.
  double lap(Stopwatch& watch) const;
  [[nodiscard]] MutableTensorView pages(const DeviceMemory& cache) const;
  [[nodiscard]] MutableTensorView rows_of(const SharedBytes& bytes, std::int64_t rows,
                                          std::int32_t heads, DType dtype) const;
  [[nodiscard]] AttentionTensors tensors(const Cache& cache, std::int64_t rows) const;

  ReplayOptions options_;
  std::unique_ptr<Executor> threads_;
  std::unique_ptr<Place> place_;
  AttentionOptions call_options_;
  Attention attention_;
  Noise q_noise_;
  Noise kv_noise_;
  std::size_t q_row_bytes_;
  std::size_t o_row_bytes_;
  std::size_t kv_row_bytes_;   // of the cache
  std::size_t new_row_bytes_;  // of new keys or values
  std::vector<float> given_scales_;
  std::size_t cache_bytes_each_;
  std::vector<Cache> caches_;
  std::vector<HostCache> host_caches_;  // as many; none without a host tier
  SharedBytes q_, k_, v_, o_;
  DeviceMemory schedule_, scratch_, scales_;
  DeviceMemory block_;  // of the step's batch, on a GPU
};

}  // namespace quire::tool
