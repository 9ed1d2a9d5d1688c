// SPDX-License-Identifier: Apache-2.0
#include "replay/spot_check.hpp"

#include <fmt/format.h>

#include <array>
#include <numeric>

#include "quire/reference.hpp"

namespace quire::tool {
namespace {

constexpr int kRowsPerCheck = 4;
constexpr int kHeadsPerRow = 4;

/// Elements of a token's row over all heads.
std::size_t elements(std::int32_t heads, std::int32_t head_dim) {
  return static_cast<std::size_t>(heads) * static_cast<std::size_t>(head_dim);
}

}  // namespace

SpotChecker::SpotChecker(const AttentionSpec& spec, std::int32_t layer, const Noise& q_noise,
                         const Noise& kv_noise, std::span<const float> scales, std::uint64_t seed)
    : spec_(spec),
      layer_(layer),
      q_noise_(q_noise),
      kv_noise_(kv_noise),
      random_(seed),
      scales_(scales.begin(), scales.end()) {
  spec_.page_size = kContiguousKv;
}

void SpotChecker::check(const StepPlan& plan, const std::byte* output) {
  const std::size_t row_bytes =
      elements(spec_.num_qo_heads, spec_.head_dim_vo) * size_of(spec_.o_dtype);
  for (int i = 0; i < kRowsPerCheck; ++i) {
    const std::int32_t chosen = random_.between(0, plan.num_tokens - 1);
    std::int32_t first_row = 0;
    for (const StepItem& item : plan.items) {
      if (chosen < first_row + item.num_new_tokens) {
        check_row(item, chosen - first_row, output + static_cast<std::size_t>(chosen) * row_bytes);
        break;
      }
      first_row += item.num_new_tokens;
    }
  }
}

void SpotChecker::recompute(std::uint64_t request, std::int64_t num_keys) {
  const std::size_t q_elements = elements(spec_.num_qo_heads, spec_.head_dim_qk);
  const std::size_t kv_elements = elements(spec_.num_kv_heads, spec_.head_dim_qk);
  const std::size_t kv_bytes = kv_elements * size_of(kv_noise_.dtype());
  q_.resize(q_elements * size_of(spec_.q_dtype));
  k_.resize(static_cast<std::size_t>(num_keys) * kv_bytes);
  v_.resize(k_.size());
  q_noise_.fill(q_.data(), q_elements, noise_key(request, layer_, NoiseTensor::kQ, num_keys - 1));
  for (std::int64_t t = 0; t < num_keys; ++t) {
    const std::size_t at = static_cast<std::size_t>(t) * kv_bytes;
    kv_noise_.fill(k_.data() + at, kv_elements, noise_key(request, layer_, NoiseTensor::kK, t));
    kv_noise_.fill(v_.data() + at, kv_elements, noise_key(request, layer_, NoiseTensor::kV, t));
  }
}

void SpotChecker::store(std::int64_t num_keys, AttentionTensors& tensors) {
  const auto heads = spec_.num_kv_heads;
  const auto dim = spec_.head_dim_qk;
  if (kv_noise_.dtype() == spec_.kv_dtype && scales_.empty()) {
    tensors.k = {k_.data(), spec_.kv_dtype, {num_keys, heads, dim}};
    tensors.v = {v_.data(), spec_.kv_dtype, {num_keys, heads, dim}};
    return;
  }
  const std::size_t bytes = k_.size() / size_of(kv_noise_.dtype()) * size_of(spec_.kv_dtype);
  k_cache_.resize(bytes);
  v_cache_.resize(bytes);
  slots_.resize(static_cast<std::size_t>(num_keys));
  std::iota(slots_.begin(), slots_.end(), std::int64_t{0});
  AppendTensors added;  // one page holds all
  added.k = {k_.data(), kv_noise_.dtype(), {num_keys, heads, dim}};
  added.v = {v_.data(), kv_noise_.dtype(), {num_keys, heads, dim}};
  added.k_cache = {k_cache_.data(), spec_.kv_dtype, {1, num_keys, heads, dim}};
  added.v_cache = {v_cache_.data(), spec_.kv_dtype, {1, num_keys, heads, dim}};
  added.slot_mapping = {slots_.data(), DType::kInt64, {num_keys}};
  if (spec_.kv_scale == KvScale::kPerToken) {
    const std::size_t count = static_cast<std::size_t>(num_keys) * static_cast<std::size_t>(heads);
    k_token_scale_.resize(count);
    v_token_scale_.resize(count);
    added.k_token_scale = {k_token_scale_.data(), DType::kFloat32, {1, heads, num_keys}};
    added.v_token_scale = {v_token_scale_.data(), DType::kFloat32, {1, heads, num_keys}};
    tensors.k_scale = {k_token_scale_.data(), DType::kFloat32, {heads, num_keys}};
    tensors.v_scale = {v_token_scale_.data(), DType::kFloat32, {heads, num_keys}};
  } else if (!scales_.empty()) {
    const auto count = static_cast<std::int64_t>(scales_.size());
    added.k_scale = added.v_scale = {scales_.data(), DType::kFloat32, {count}};
    tensors.k_scale = tensors.v_scale = added.k_scale;
  }
  append(Device::cpu(), KvLayout::kNHD, {}, added).throw_if_error();
  tensors.k = {k_cache_.data(), spec_.kv_dtype, {num_keys, heads, dim}};
  tensors.v = {v_cache_.data(), spec_.kv_dtype, {num_keys, heads, dim}};
}

void SpotChecker::check_row(const StepItem& item, std::int32_t query, const std::byte* row) {
  const std::int32_t num_keys = item.position + query + 1;
  recompute(item.request, num_keys);
  const std::array<std::int32_t, 2> qo_indptr = {0, 1};
  const std::array<std::int32_t, 2> kv_indptr = {0, num_keys};
  Batch batch;
  batch.qo_indptr = {qo_indptr.data(), DType::kInt32, {2}};
  batch.kv_indptr = {kv_indptr.data(), DType::kInt32, {2}};
  AttentionTensors tensors;
  tensors.q = {q_.data(), spec_.q_dtype, {1, spec_.num_qo_heads, spec_.head_dim_qk}};
  store(num_keys, tensors);

  const std::size_t head_bytes =
      static_cast<std::size_t>(spec_.head_dim_vo) * size_of(spec_.o_dtype);
  for (int i = 0; i < kHeadsPerRow; ++i) {
    const std::int32_t head = random_.between(0, spec_.num_qo_heads - 1);
    const ReferenceRow expected = reference_attention_row(spec_, batch, tensors, 0, 0, head);
    const RowComparison compared = compare_row(
        spec_, expected.o, row + static_cast<std::size_t>(head) * head_bytes, kv_noise_.largest());
    result_.take(compared,
                 fmt::format("request {}, position {}, head {}", item.request, num_keys - 1, head));
  }
}

}  // namespace quire::tool
