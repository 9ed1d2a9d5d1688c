// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bench/course.hpp"
#include "common/cache_scales.hpp"
#include "common/noise_block.hpp"
#include "common/page_layout.hpp"
#include "device/mirror.hpp"
#include "device/place.hpp"
#include "quire/attention.hpp"

namespace quire::tool {

struct MeasureOptions {
  DType dtype = DType::kBFloat16;
  DType q_dtype = DType::kNone;   ///< kNone: as the workload says.
  DType kv_dtype = DType::kNone;  ///< Likewise.
  std::optional<KvScale> kv_scale{};
  std::uint64_t seed = 1;
  double min_seconds = 0.5;       ///< On the CPU, a workload is repeated at least so long …
  std::int32_t repetitions = 50;  ///< … on a GPU so often.
  bool exact_limits = false;      ///< On a GPU: the batch's own `BatchLimits`, not an engine's.
  bool share_prefixes = true;     ///< `AttentionSpec::share_prefixes`.
  bool named_prefixes = false;    ///< `Batch::prefix_leaders` is given.
  bool batch_invariant = false;   ///< `AttentionSpec::batch_invariant`.
};

/// @return The dtype of queries: the options', else the workload's, else that of outputs.
DType query_dtype(const Workload& workload, const MeasureOptions& options);
/// @return The cache's dtype: the options', else the workload's, else that of queries.
DType cache_dtype(const Workload& workload, const MeasureOptions& options);
/// @return What a workload asks of a kernel.
AttentionSpec spec_of(const Workload& workload, const MeasureOptions& options);

/// A tensor of noise at a place.
struct NoisyTensor {
  /// @param count  Elements.
  NoisyTensor(Place& place, const Noise& noise, std::size_t count, std::uint64_t key);
  NoiseBlock block;
  DeviceMemory memory;
};

/// A workload's batch and tensors where they are computed. What an operation does not use is empty.
class Arrays {
 public:
  Arrays(const Workload& workload, const MeasureOptions& options, Place& place);

  [[nodiscard]] const AttentionSpec& spec() const { return spec_; }
  [[nodiscard]] const PageLayout& layout() const { return layout_; }
  [[nodiscard]] const Batch& batch() const { return batch_; }
  [[nodiscard]] AttentionTensors attention() const;
  [[nodiscard]] AppendTensors append() const;

  [[nodiscard]] std::int32_t queries_of(std::size_t seq) const { return qo_len_[seq]; }
  [[nodiscard]] std::int32_t keys_of(std::size_t seq) const { return kv_len_[seq]; }
  /// @return Where the tree masks of a request's rows begin, on the host. Null without.
  [[nodiscard]] const std::uint32_t* tree_mask_of(std::size_t seq) const;
  [[nodiscard]] std::int32_t tree_words() const { return tree_words_; }
  [[nodiscard]] double largest_v() const { return kv_noise_.largest(); }
  [[nodiscard]] const CacheScales& scales() const { return scales_; }
  [[nodiscard]] const NoisyTensor& q() const { return q_; }
  [[nodiscard]] const NoisyTensor& k() const { return k_; }
  [[nodiscard]] const NoisyTensor& v() const { return v_; }
  [[nodiscard]] const NoisyTensor& new_k() const { return new_k_; }
  [[nodiscard]] const NoisyTensor& new_v() const { return new_v_; }
  [[nodiscard]] const DeviceMemory& o() const { return o_; }

 private:
  void draw_trees();
  [[nodiscard]] MutableTensorView cache(const NoisyTensor& noisy) const;
  [[nodiscard]] TensorView rows(const NoisyTensor& noisy, DType dtype, std::int32_t heads) const;

  Device device_;
  AttentionSpec spec_;
  std::vector<std::int32_t> qo_len_, kv_len_;
  PageLayout layout_;
  Noise q_noise_, new_noise_, kv_noise_;
  NoisyTensor q_, new_k_, new_v_, k_, v_;
  CacheScales scales_;
  DeviceMemory o_, k_scale_, v_scale_;
  std::int32_t tree_words_ = 1;
  std::vector<std::uint32_t> tree_mask_;
  Mirror mirror_;
  Batch batch_;
};

}  // namespace quire::tool
