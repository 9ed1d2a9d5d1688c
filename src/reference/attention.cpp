// SPDX-License-Identifier: Apache-2.0
// The oracle. It shares no code with schedule and kernels but the scalar conversions, so that a
// mistake there is not a mistake here.
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/float_formats.hpp"
#include "quire/reference.hpp"

namespace quire {
inline namespace v0 {
namespace {

constexpr double kNoKey = -std::numeric_limits<double>::infinity();

using Row = std::vector<double>;

template <typename Stored, typename Convert>
void convert_row(const TensorView& tensor, std::int64_t offset, Row& to, const Convert& convert) {
  const auto* const from = static_cast<const Stored*>(tensor.data) + offset;
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = convert(from[i]);
}

/// What all codes of a format mean: to look them up takes less than to convert one.
template <typename Code>
std::vector<float> table_of(float (*convert)(Code)) {
  std::vector<float> table(std::size_t{1} << (8 * sizeof(Code)));
  for (std::size_t code = 0; code < table.size(); ++code) {
    table[code] = convert(static_cast<Code>(code));
  }
  return table;
}

/// Neighbouring elements of a tensor from element `offset` on, as many as `to` has.
void read_row(const TensorView& tensor, std::int64_t offset, Row& to) {
  static const std::vector<float> kFloat16 = table_of<std::uint16_t>(core::float_from_float16);
  static const std::vector<float> kE4M3 = table_of<std::uint8_t>(core::float_from_float8_e4m3);
  static const std::vector<float> kE5M2 = table_of<std::uint8_t>(core::float_from_float8_e5m2);
  switch (tensor.dtype) {
    case DType::kFloat32:
      return convert_row<float>(tensor, offset, to, [](float x) { return x; });
    case DType::kBFloat16:
      return convert_row<std::uint16_t>(tensor, offset, to, core::float_from_bfloat16);
    case DType::kFloat16:
      return convert_row<std::uint16_t>(tensor, offset, to,
                                        [](auto code) { return kFloat16[code]; });
    case DType::kFloat8E4M3:
      return convert_row<std::uint8_t>(tensor, offset, to, [](auto code) { return kE4M3[code]; });
    case DType::kFloat8E5M2:
      return convert_row<std::uint8_t>(tensor, offset, to, [](auto code) { return kE5M2[code]; });
    case DType::kInt8:
      return convert_row<std::int8_t>(tensor, offset, to, [](std::int8_t x) { return x; });
    default:
      throw Error(ErrorCode::kInvalidArgument,
                  "[reference] expected a floating-point or int8 tensor, got " +
                      std::string(to_string(tensor.dtype)));
  }
}

double dot(const Row& a, const Row& b) {
  std::array<double, 4> sums{};  // that do not wait for one another
  for (std::size_t i = 0; i < a.size(); ++i) sums[i % sums.size()] += a[i] * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename T>
T at(const TensorView& tensor, std::int64_t index) {
  return static_cast<const T*>(tensor.data)[index * tensor.stride(0)];
}

/// One request, seen through the batch.
class Sequence {
 public:
  Sequence(const AttentionSpec& spec, const Batch& batch, std::int32_t seq)
      : spec_(spec), batch_(batch), seq_(seq) {
    first_row_ = at<std::int32_t>(batch.qo_indptr, seq);
    qo_len_ = at<std::int32_t>(batch.qo_indptr, seq + 1) - first_row_;
    if (batch.kv_len.given()) {
      kv_len_ = at<std::int32_t>(batch.kv_len, seq);
    } else if (batch.kv_page_indptr.given()) {
      const std::int64_t pages = at<std::int32_t>(batch.kv_page_indptr, seq + 1) -
                                 at<std::int32_t>(batch.kv_page_indptr, seq);
      kv_len_ = pages == 0
                    ? 0
                    : (pages - 1) * spec.page_size + at<std::int32_t>(batch.kv_last_page_len, seq);
    } else {
      kv_len_ = at<std::int32_t>(batch.kv_indptr, seq + 1) - at<std::int32_t>(batch.kv_indptr, seq);
    }
  }

  [[nodiscard]] std::int64_t first_row() const { return first_row_; }
  [[nodiscard]] std::int64_t qo_len() const { return qo_len_; }
  [[nodiscard]] std::int64_t kv_len() const { return kv_len_; }

  [[nodiscard]] bool sees(std::int64_t query, std::int64_t key) const {
    const std::int64_t position = kv_len_ - qo_len_ + query;
    if (spec_.window_left >= 0 && key < position - spec_.window_left) return false;
    switch (spec_.mask) {
      case Mask::kNone:
        return true;
      case Mask::kCausal:
        return key <= position;
      case Mask::kTree: {
        const std::int64_t new_key = key - (kv_len_ - qo_len_);
        if (new_key < 0) return true;
        const auto* words = static_cast<const std::uint32_t*>(batch_.tree_mask.data) +
                            (first_row_ + query) * batch_.tree_mask.stride(0);
        return ((words[new_key / 32] >> (new_key % 32)) & 1U) != 0;
      }
      case Mask::kFull: {
        const std::int64_t bit = query * kv_len_ + key;
        const auto* bytes = static_cast<const std::uint8_t*>(batch_.full_mask.data) +
                            at<std::int64_t>(batch_.full_mask_indptr, seq_);
        return ((bytes[bit / 8] >> (bit % 8)) & 1U) != 0;
      }
    }
    return false;
  }

  /// Offset in elements of a key's or value's first component.
  [[nodiscard]] std::int64_t offset(const TensorView& cache, std::int64_t key,
                                    std::int64_t kv_head) const {
    const bool heads_first = spec_.kv_layout == KvLayout::kHND;
    if (spec_.page_size == kContiguousKv) {
      const std::int64_t row = at<std::int32_t>(batch_.kv_indptr, seq_) + key;
      return row * cache.stride(heads_first ? 1 : 0) + kv_head * cache.stride(heads_first ? 0 : 1);
    }
    return page(key / spec_.page_size) * cache.stride(0) +
           (key % spec_.page_size) * cache.stride(heads_first ? 2 : 1) +
           kv_head * cache.stride(heads_first ? 1 : 2);
  }

  /// Offset in elements of a key's scale: [page, head, token], or [head, row] of contiguous keys.
  [[nodiscard]] std::int64_t scale_offset(const TensorView& scale, std::int64_t key,
                                          std::int64_t kv_head) const {
    if (spec_.page_size == kContiguousKv) {
      const std::int64_t row = at<std::int32_t>(batch_.kv_indptr, seq_) + key;
      return kv_head * scale.stride(0) + row * scale.stride(1);
    }
    return page(key / spec_.page_size) * scale.stride(0) + kv_head * scale.stride(1) +
           (key % spec_.page_size) * scale.stride(2);
  }

 private:
  [[nodiscard]] std::int64_t page(std::int64_t index) const {
    if (batch_.page_table.given()) {
      return static_cast<const std::int32_t*>(
          batch_.page_table
              .data)[seq_ * batch_.page_table.stride(0) + index * batch_.page_table.stride(1)];
    }
    return at<std::int32_t>(batch_.kv_page_indices,
                            at<std::int32_t>(batch_.kv_page_indptr, seq_) + index);
  }

  const AttentionSpec& spec_;
  const Batch& batch_;
  std::int32_t seq_;
  std::int64_t first_row_ = 0;
  std::int64_t qo_len_ = 0;
  std::int64_t kv_len_ = 0;
};

/// Of a key; of all keys, if scales are not per token.
double scale_of(const AttentionSpec& spec, const Sequence& sequence, const TensorView& scale,
                std::int64_t key, std::int64_t kv_head) {
  if (!scale.given()) return 1.0;
  if (spec.kv_scale == KvScale::kPerToken) {
    return static_cast<const float*>(scale.data)[sequence.scale_offset(scale, key, kv_head)];
  }
  return at<float>(scale, scale.size(0) == 1 ? 0 : kv_head);
}

void check_range(const char* what, std::int64_t value, std::int64_t bound) {
  if (value < 0 || value >= bound) {
    throw Error(ErrorCode::kInvalidArgument,
                std::string("[reference] ") + what + ": expected a value in [0, " +
                    std::to_string(bound) + "), got " + std::to_string(value));
  }
}

}  // namespace

ReferenceRow reference_attention_row(const AttentionSpec& spec, const Batch& batch,
                                     const AttentionTensors& tensors, std::int32_t seq,
                                     std::int32_t query, std::int32_t qo_head) {
  check_range("seq", seq, batch.qo_indptr.size(0) - 1);
  check_range("qo_head", qo_head, spec.num_qo_heads);
  const Sequence sequence(spec, batch, seq);
  check_range("query", query, sequence.qo_len());

  const std::int64_t head_dim_qk = spec.head_dim_qk;
  const std::int64_t head_dim_vo = spec.head_dim_vo == 0 ? head_dim_qk : spec.head_dim_vo;
  const double sm_scale =
      spec.sm_scale != 0.0F ? spec.sm_scale : 1.0 / std::sqrt(static_cast<double>(head_dim_qk));
  const std::int64_t kv_head = qo_head / (spec.num_qo_heads / spec.num_kv_heads);
  const TensorView& q_scales = tensors.q_scale;
  const double q_scale =
      q_scales.given() ? at<float>(q_scales, q_scales.size(0) == 1 ? 0 : qo_head) : 1.0;
  const std::int64_t position = sequence.kv_len() - sequence.qo_len() + query;
  const std::int64_t q_offset =
      (sequence.first_row() + query) * tensors.q.stride(0) + qo_head * tensors.q.stride(1);

  Row query_row(static_cast<std::size_t>(head_dim_qk));
  read_row(tensors.q, q_offset, query_row);
  Row key_row(query_row.size());
  Row logits(static_cast<std::size_t>(sequence.kv_len()), kNoKey);
  double max_logit = kNoKey;
  for (std::int64_t key = 0; key < sequence.kv_len(); ++key) {
    if (!sequence.sees(query, key)) continue;
    read_row(tensors.k, sequence.offset(tensors.k, key, kv_head), key_row);
    double logit = dot(query_row, key_row) * q_scale * sm_scale *
                   scale_of(spec, sequence, tensors.k_scale, key, kv_head);
    if (spec.logits_soft_cap > 0.0F) {
      logit = spec.logits_soft_cap * std::tanh(logit / spec.logits_soft_cap);
    }
    if (spec.alibi) {
      logit -= at<float>(tensors.alibi_slopes, qo_head) *
               static_cast<double>(std::llabs(position - key));
    }
    logits[static_cast<std::size_t>(key)] = logit;
    max_logit = std::fmax(max_logit, logit);
  }

  ReferenceRow row{std::vector<double>(static_cast<std::size_t>(head_dim_vo), 0.0), kNoKey};
  if (max_logit == kNoKey) return row;
  if (spec.sinks) max_logit = std::fmax(max_logit, at<float>(tensors.sinks, qo_head));
  double denominator = spec.sinks ? std::exp(at<float>(tensors.sinks, qo_head) - max_logit) : 0.0;
  Row value_row(row.o.size());
  for (std::int64_t key = 0; key < sequence.kv_len(); ++key) {
    if (!sequence.sees(query, key)) continue;
    const double weight = std::exp(logits[static_cast<std::size_t>(key)] - max_logit);
    denominator += weight;
    const double scaled = weight * scale_of(spec, sequence, tensors.v_scale, key, kv_head);
    read_row(tensors.v, sequence.offset(tensors.v, key, kv_head), value_row);
    for (std::size_t d = 0; d < row.o.size(); ++d) row.o[d] += scaled * value_row[d];
  }
  for (double& component : row.o) component /= denominator;
  row.lse = max_logit + std::log(denominator);
  return row;
}

ReferenceResult reference_attention(const AttentionSpec& spec, const Batch& batch,
                                    const AttentionTensors& tensors) {
  const auto heads = static_cast<std::size_t>(spec.num_qo_heads);
  const auto head_dim =
      static_cast<std::size_t>(spec.head_dim_vo == 0 ? spec.head_dim_qk : spec.head_dim_vo);
  const std::size_t rows = static_cast<std::size_t>(tensors.q.size(0)) * heads;
  ReferenceResult result{std::vector<double>(rows * head_dim, 0.0),
                         std::vector<double>(rows, kNoKey)};
  const auto num_seqs = static_cast<std::int32_t>(batch.qo_indptr.size(0) - 1);
  for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
    const Sequence sequence(spec, batch, seq);
    for (std::int32_t query = 0; query < sequence.qo_len(); ++query) {
      for (std::int32_t head = 0; head < spec.num_qo_heads; ++head) {
        ReferenceRow row = reference_attention_row(spec, batch, tensors, seq, query, head);
        const std::size_t index = static_cast<std::size_t>(sequence.first_row() + query) * heads +
                                  static_cast<std::size_t>(head);
        std::copy(row.o.begin(), row.o.end(),
                  result.o.begin() + static_cast<std::ptrdiff_t>(index * head_dim));
        result.lse[index] = row.lse;
      }
    }
  }
  return result;
}

}  // namespace v0
}  // namespace quire
