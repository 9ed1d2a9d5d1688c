// SPDX-License-Identifier: Apache-2.0
#include "common/cache_scales.hpp"

namespace quire::tool {

CacheScales::CacheScales(const AttentionSpec& spec, std::int64_t num_pages, float step)
    : kind_(spec.kv_scale),
      num_pages_(num_pages),
      num_heads_(spec.num_kv_heads),
      is_contiguous_(spec.page_size == kContiguousKv),
      page_size_(is_contiguous_ ? 1 : spec.page_size),
      step_(step) {
  switch (kind_) {
    case KvScale::kNone:
      break;
    case KvScale::kPerTensor:
      values_ = {step};
      break;
    case KvScale::kPerHead:
      for (std::int32_t head = 0; head < num_heads_; ++head) values_.push_back(at(0, head, 0));
      break;
    case KvScale::kPerToken:
      values_.reserve(static_cast<std::size_t>(num_pages) * static_cast<std::size_t>(num_heads_) *
                      static_cast<std::size_t>(page_size_));
      for (std::int64_t page = 0; page < num_pages; ++page) {
        for (std::int32_t head = 0; head < num_heads_; ++head) {
          for (std::int32_t token = 0; token < page_size_; ++token) {
            values_.push_back(at(page, head, token));
          }
        }
      }
      break;
  }
}

float CacheScales::at(std::int64_t page, std::int32_t head, std::int32_t token) const {
  constexpr std::int64_t kSteps = 32;
  std::int64_t place = 0;
  if (kind_ == KvScale::kNone) return 1;
  if (kind_ == KvScale::kPerHead) place = head;
  if (kind_ == KvScale::kPerToken) place = page * 5 + std::int64_t{head} * 3 + token;
  return step_ * (1 - static_cast<float>(place % kSteps) / (2 * kSteps));
}

MutableTensorView CacheScales::view(void* data, Device device) const {
  switch (kind_) {
    case KvScale::kNone:
      return {};
    case KvScale::kPerTensor:
      return {data, DType::kFloat32, {1}, device};
    case KvScale::kPerHead:
      return {data, DType::kFloat32, {num_heads_}, device};
    case KvScale::kPerToken:
      if (is_contiguous_) {
        return {data, DType::kFloat32, {num_heads_, num_pages_}, {1, num_heads_}, device};
      }
      return {data, DType::kFloat32, {num_pages_, num_heads_, page_size_}, device};
  }
  return {};
}

}  // namespace quire::tool
