// SPDX-License-Identifier: Apache-2.0
/// @file
/// A `RandomBatch` on a GPU, and the comparison of what was computed there with the oracle.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/narrow_formats.hpp"
#include "support/device_memory.hpp"
#include "support/random_batch.hpp"

namespace quire::testing {

/// The memory of a batch in an order of its own. What quire writes comes last.
inline std::vector<std::span<std::byte>> memory_of(RandomBatch& batch) {
  return {bytes_of(batch.qo_indptr),       bytes_of(batch.kv_len),
          bytes_of(batch.page_table),      bytes_of(batch.kv_page_indptr),
          bytes_of(batch.kv_page_indices), bytes_of(batch.kv_last_page_len),
          bytes_of(batch.kv_indptr),       bytes_of(batch.tree_mask),
          bytes_of(batch.full_mask),       bytes_of(batch.full_mask_indptr),
          bytes_of(batch.prefix_leaders),  bytes_of(batch.prefix_pages),
          bytes_of(batch.q_scale),         bytes_of(batch.k_scale),
          bytes_of(batch.v_scale),         bytes_of(batch.sinks),
          bytes_of(batch.alibi_slopes),    batch.q_elements.bytes(),
          batch.k_elements.bytes(),        batch.v_elements.bytes(),
          batch.o_elements.bytes(),        batch.lse_elements.bytes()};
}
inline constexpr std::size_t kWrittenBuffers = 2;  ///< o and lse

/// A batch's memory and views on the device, on a stream of its own.
class DeviceBatch {
 public:
  /// @param shift  Bytes by which q, K, V and O are off from an allocation's alignment.
  explicit DeviceBatch(RandomBatch& host_batch, std::size_t shift = 0) : host(host_batch) {
    const std::vector<std::span<std::byte>> memory = memory_of(host);
    constexpr std::size_t kElementBuffers = 5;
    const std::size_t written = memory.size() - kWrittenBuffers;
    const std::size_t elements = memory.size() - kElementBuffers;
    for (std::size_t i = 0; i < memory.size(); ++i) {
      const bool shifted = i >= elements && i + 1 < memory.size();
      mirror.add(memory[i], i >= written ? DeviceMirror::Use::kWritten : DeviceMirror::Use::kRead,
                 stream, shifted ? shift : 0);
    }
    batch = on_device(mirror, host.batch);
    tensors.q = mirror.on_device(host.tensors.q);
    tensors.k = mirror.on_device(host.tensors.k);
    tensors.v = mirror.on_device(host.tensors.v);
    tensors.o = mirror.on_device(host.tensors.o);
    tensors.lse = mirror.on_device(host.tensors.lse);
    tensors.q_scale = mirror.on_device(host.tensors.q_scale);
    tensors.k_scale = mirror.on_device(host.tensors.k_scale);
    tensors.v_scale = mirror.on_device(host.tensors.v_scale);
    tensors.sinks = mirror.on_device(host.tensors.sinks);
    tensors.alibi_slopes = mirror.on_device(host.tensors.alibi_slopes);
  }

  /// Puts another batch of the same shapes in the place of this one; its results will be NaN.
  void replace(RandomBatch& other) const {
    const std::vector<std::span<std::byte>> memory = memory_of(other);
    for (std::size_t i = 0; i < memory.size(); ++i) mirror.upload(i, memory[i], stream);
    stream.synchronize();
  }

  /// Brings the results to a batch that was put here.
  void download_into(RandomBatch& other) const {
    mirror.download(stream);
    if (&other == &host) return;
    other.o_elements = host.o_elements;
    other.lse_elements = host.lse_elements;
  }

  /// Makes o and lse NaN again, here and there.
  void forget_results() {
    for (ElementBuffer* results : {&host.o_elements, &host.lse_elements}) {
      for (std::int64_t i = 0; i < results->size(); ++i) {
        results->set(i, std::numeric_limits<float>::quiet_NaN());
      }
    }
    replace(host);
  }

  /// Schedules and runs in these workspaces; does not wait.
  Status launch(const Attention& attention, const DeviceWorkspaces& workspaces,
                CheckRecord* check = nullptr) const {
    const CallOptions call{stream.get(), check};
    const Status status = attention.schedule(batch, workspaces.schedule(), call);
    if (!status.ok()) return status;
    return attention.run(batch, tensors, workspaces.schedule(), workspaces.scratch(), call);
  }

  /// Schedules and runs in workspaces full of rubbish and brings the results to the host.
  Status run(const Attention& attention) const {
    const DeviceWorkspaces workspaces(attention.workspace_sizes(), stream);
    const Status status = launch(attention, workspaces);
    mirror.download(stream);
    EXPECT_TRUE(mirror.guards_are_untouched(stream));
    EXPECT_TRUE(workspaces.guards_are_untouched(stream));
    return status;
  }

  /// The results as bytes, brought to the host.
  [[nodiscard]] std::vector<std::byte> result_bytes() const {
    mirror.download(stream);
    std::vector<std::byte> bytes(host.o_elements.bytes().begin(), host.o_elements.bytes().end());
    const std::span<std::byte> lse = host.lse_elements.bytes();
    bytes.insert(bytes.end(), lse.begin(), lse.end());
    return bytes;
  }

  RandomBatch& host;
  Stream stream;
  DeviceMirror mirror;
  Batch batch;
  AttentionTensors tensors;
};

/// Bounds on |o − oracle| / max |v| before output rounding, and on |lse − oracle|.
struct Bounds {
  double o = 0.0;
  double lse = 0.0;
};

/// Kernels for 16-bit keys round each weight p = exp(s − max) ≤ 1 to the dtype of V before they
/// multiply, so that |δp| ≤ 2⁻⁹ for bfloat16 and 2⁻¹² for float16, half a unit in the last place
/// below 1. With the weights' sum ≥ 1 and most of the errors cancelling, o moves by no more than
/// that times max |v|. The rest is arithmetic: what the library promises for bfloat16 before output
/// rounding, an eighth of it for float16, whose units are an eighth, and fp32's own bound.
/// Weights relative to a maximum of before may lie above 1, and then |δp| ≤ 2⁻⁸ p for bfloat16: a row
/// whose weight is nearly all on one such key is off by twice as much (`weights_above_one`).
inline Bounds bounds_of(const AttentionSpec& spec, bool weights_above_one = false) {
  const auto either = [&](DType dtype) { return spec.q_dtype == dtype || spec.kv_dtype == dtype; };
  constexpr double kTensorCoreLse = 5e-5;  // their sums are cut off, not rounded
  const double times = weights_above_one ? 2.0 : 1.0;
  const bool is_narrow = core::is_narrow(spec.kv_dtype);  // weights are those of fp16
  if (!is_narrow && either(DType::kBFloat16)) return {1e-3 + times * 0x1p-9, kTensorCoreLse};
  if (is_narrow || either(DType::kFloat16)) {
    return {1e-3 / 8.0 + times * 0x1p-12, kTensorCoreLse};
  }
  return {2e-6, 1e-5};
}

/// Whether some queries may be in large units that multiply codes of K as they are.
inline bool multiplies_codes(const RandomBatch& batch) {
  const AttentionSpec& spec = batch.spec;
  const std::int32_t group = spec.num_qo_heads / spec.num_kv_heads;
  constexpr std::int32_t kSmallRows = 32;
  const bool is_float8 = spec.kv_dtype == DType::kFloat8E4M3 || spec.kv_dtype == DType::kFloat8E5M2;
  const bool has_large = batch.options.shared_pages > 0 || batch.options.page_forest ||
                         std::ranges::any_of(batch.options.requests, [&](const Request& request) {
                           return request.qo_len * group > kSmallRows;
                         });
  return is_float8 && spec.head_dim_qk == 128 && spec.head_dim_vo == 128 &&
         spec.kv_scale != KvScale::kPerToken && has_large;
}

/// Where codes of K are multiplied as they are, a logit is a sum in four steps of 33 terms each, cut off
/// below 2⁻¹³ of the largest, m: by half of that on average, in all by 132 · 2⁻¹⁴ m = 2⁻⁷ m. What is
/// common to all keys of a row is seen in lse alone. In o it is how logits differ: by 2⁻¹³ m / √12 for each
/// term, 2⁻¹³ m · √132 / √12 = 2⁻¹¹ m in all, and by as much for an fp16 query, which is known to 2⁻⁹ of
/// each component. Two standard deviations of one of them are 2⁻¹⁰ m, and where weights are spread over
/// several keys, their errors cancel. Here m is about 1, and 8 where some keys are up to 8 times as long
/// as others (`weights_above_one`).
inline Bounds bounds_of(const RandomBatch& batch, bool weights_above_one) {
  Bounds bounds = bounds_of(batch.spec, weights_above_one);
  if (!multiplies_codes(batch)) return bounds;
  const double largest_term = weights_above_one ? 8.0 : 1.0;
  bounds.o += 0x1p-10 * largest_term;
  bounds.lse = 0x1p-7 * largest_term;
  return bounds;
}

/// The oracle, its rows shared out to all cores.
inline ReferenceResult oracle_of(const RandomBatch& batch) {
  struct Context {
    const RandomBatch& batch;
    std::vector<std::int32_t> seq_of_row;
    ReferenceResult result;
  };
  const auto heads = static_cast<std::size_t>(batch.spec.num_qo_heads);
  const auto rows = static_cast<std::size_t>(batch.total_q());
  Context context{
      batch,
      {},
      {std::vector<double>(rows * heads * static_cast<std::size_t>(batch.spec.head_dim_vo)),
       std::vector<double>(rows * heads, -std::numeric_limits<double>::infinity())}};
  for (std::int32_t seq = 0; seq < batch.num_seqs(); ++seq) {
    const auto at = static_cast<std::size_t>(seq);
    context.seq_of_row.resize(static_cast<std::size_t>(batch.qo_indptr[at + 1]), seq);
  }
  const auto compute = [](void* opaque, std::int32_t row) noexcept {
    Context& to = *static_cast<Context*>(opaque);
    const RandomBatch& from = to.batch;
    const std::int32_t seq = to.seq_of_row[static_cast<std::size_t>(row)];
    const std::int32_t query = row - from.qo_indptr[static_cast<std::size_t>(seq)];
    for (std::int32_t head = 0; head < from.spec.num_qo_heads; ++head) {
      const ReferenceRow result =
          reference_attention_row(from.spec, from.batch, from.tensors, seq, query, head);
      const std::int64_t at = std::int64_t{row} * from.spec.num_qo_heads + head;
      std::ranges::copy(result.o, to.result.o.begin() + at * from.spec.head_dim_vo);
      to.result.lse[static_cast<std::size_t>(at)] = result.lse;
    }
  };
  default_executor().parallel(static_cast<std::int32_t>(context.seq_of_row.size()), compute,
                              &context);
  return std::move(context.result);
}

/// Expects what is on the host to be the oracle's.
inline void expect_matches(const RandomBatch& batch, const ReferenceResult& oracle,
                           bool weights_above_one = false) {
  const Difference difference = compare(batch, oracle);
  const Bounds bounds = bounds_of(batch, weights_above_one);
  EXPECT_EQ(difference.mismatches, 0);
  EXPECT_LE(difference.o, bounds.o);
  EXPECT_LE(difference.lse, bounds.lse);  // 0 if it was not asked for
  EXPECT_TRUE(batch.gaps_are_untouched());
}

/// Multiplies each key by what `factor` says of its place.
inline void scale_keys(RandomBatch& batch, float (*factor)(std::int64_t key, std::int64_t kv_len)) {
  for (std::size_t seq = 0; seq < batch.options.requests.size(); ++seq) {
    const std::int64_t kv_len = batch.options.requests[seq].kv_len;
    for (std::int64_t key = 0; key < kv_len; ++key) {
      for (std::int64_t head = 0; head < batch.spec.num_kv_heads; ++head) {
        const std::int64_t row = batch.row_offset(batch.tensors.k, seq, key, head);
        for (std::int64_t i = row; i < row + batch.spec.head_dim_qk; ++i) {
          batch.k_elements.set(i, factor(key, kv_len) * batch.k_elements.get(i));
        }
      }
    }
  }
}

/// Limits as an engine would set them, far above any batch of a test.
inline constexpr BatchLimits kRoomyLimits{1024, 32768, 131072};

/// `edgy_options()` whose output shows what was computed before rounding.
inline RandomBatchOptions exact_options(DType dtype, std::int32_t group, std::int32_t kv_heads,
                                        std::int32_t head_dim) {
  RandomBatchOptions options = edgy_options(dtype, group, kv_heads, head_dim);
  options.spec.o_dtype = DType::kFloat32;
  return options;
}

/// Requests of many rows, of which some fill tiles and some do not, beside others. Small, since the
/// oracle takes as long as there are pairs of queries and keys.
inline std::vector<Request> prompts() {
  return {{40, 700}, {1, 300}, {33, 97}, {9, 400}, {64, 64}};
}

/// Runs the batch again, for o in the dtype of q and without lse, which kernels write in ways of their
/// own: expects what the batch has in float32, rounded, bit for bit.
inline void expect_same_rounded(const RandomBatch& host, const BatchLimits& limits) {
  RandomBatchOptions options = host.options;
  options.spec.o_dtype = DType::kNone;
  RandomBatch rounded(options);
  const auto copy = [](ElementBuffer from, ElementBuffer& to) {  // tests may have changed them
    ASSERT_EQ(from.bytes().size(), to.bytes().size());
    std::ranges::copy(from.bytes(), to.bytes().begin());
  };
  copy(host.q_elements, rounded.q_elements);
  copy(host.k_elements, rounded.k_elements);
  copy(host.v_elements, rounded.v_elements);
  const auto give = [](const auto& from, auto& to, DType dtype, TensorView& view) {
    to = from;
    const auto size = static_cast<std::int64_t>(to.size());
    if (size > 0) view = TensorView(to.data(), dtype, {size});
  };
  const bool has_lengths = host.batch.kv_len.data != nullptr;
  if (has_lengths) give(host.kv_len, rounded.kv_len, DType::kInt32, rounded.batch.kv_len);
  give(host.q_scale, rounded.q_scale, DType::kFloat32, rounded.tensors.q_scale);
  give(host.sinks, rounded.sinks, DType::kFloat32, rounded.tensors.sinks);
  if (host.spec.kv_scale == KvScale::kPerTensor || host.spec.kv_scale == KvScale::kPerHead) {
    give(host.k_scale, rounded.k_scale, DType::kFloat32, rounded.tensors.k_scale);
    give(host.v_scale, rounded.v_scale, DType::kFloat32, rounded.tensors.v_scale);
  }
  rounded.tensors.lse = {};
  const Attention attention(kGpu, rounded.spec, limits);
  const DeviceBatch batch(rounded);
  const Status status = batch.run(attention);
  ASSERT_TRUE(status.ok()) << status.message();

  ElementBuffer element(rounded.spec.o_dtype, 1);
  std::int64_t different = 0;
  for (std::int64_t row = 0; row < host.total_q(); ++row) {
    for (std::int64_t head = 0; head < host.spec.num_qo_heads; ++head) {
      for (std::int64_t dim = 0; dim < host.spec.head_dim_vo; ++dim) {
        element.set(0, host.o(row, head, dim));
        const float expected = element.get(0);
        const float got = rounded.o(row, head, dim);
        different += got == expected || (std::isnan(got) && std::isnan(expected)) ? 0 : 1;
      }
    }
  }
  EXPECT_EQ(different, 0) << "elements of o in the dtype of q";
  EXPECT_TRUE(rounded.gaps_are_untouched());
}

/// Runs the batch on the GPU and compares.
inline void expect_oracle(RandomBatch& host, const BatchLimits& limits,
                          bool weights_above_one = false) {
  const Attention attention(kGpu, host.spec, limits);
  const DeviceBatch batch(host);
  const Status status = batch.run(attention);
  ASSERT_TRUE(status.ok()) << status.message();
  expect_matches(host, oracle_of(host), weights_above_one);
  if (size_of(host.spec.q_dtype) <= 2 && host.spec.o_dtype == DType::kFloat32) {
    expect_same_rounded(host, limits);
  }
}

/// Likewise, made of these options, within the smallest limits.
inline void expect_oracle(const RandomBatchOptions& options, const std::string& what = {}) {
  SCOPED_TRACE(what);
  RandomBatch host(options);
  expect_oracle(host, host.limits());
}

}  // namespace quire::testing
