// SPDX-License-Identifier: Apache-2.0
#include "common/noise.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "common/numbers.hpp"
#include "common/random.hpp"

namespace quire::tool {
namespace {

constexpr std::size_t kTableSize = std::size_t{1} << 18;  // elements that a run can begin at
constexpr std::size_t kLongestRun = 4096;                 // elements copied from one place
constexpr float kInt8Steps = 32;                          // per unit: ±127 is four deviations

/// An 8-bit float of either kind with the top exponent bit clear: a magnitude below 2.
std::byte float8_bits(std::uint64_t random) { return static_cast<std::byte>(random & 0xbfU); }

void store(DType dtype, std::byte* to, float normal, std::uint64_t random) {
  constexpr float kLargestInt8 = 127;
  if (is_float(dtype)) return store_float(dtype, normal, to);
  if (dtype == DType::kInt8) {
    const float steps = std::clamp(std::round(normal * kInt8Steps), -kLargestInt8, kLargestInt8);
    *to = static_cast<std::byte>(static_cast<std::int8_t>(steps));
    return;
  }
  *to = float8_bits(random);
}

}  // namespace

Noise::Noise(DType dtype, std::uint64_t seed)
    : dtype_(dtype),
      element_bytes_(size_of(dtype)),
      seed_(seed),
      table_((kTableSize + kLongestRun) * element_bytes_) {
  Random random(seed);
  for (std::size_t i = 0; i < kTableSize + kLongestRun; ++i) {
    const double radius = std::sqrt(-2 * std::log1p(-random.uniform()));
    const double normal = radius * std::cos(2 * std::numbers::pi * random.uniform());
    largest_ = std::max(largest_, std::fabs(static_cast<float>(normal)));
    store(dtype, table_.data() + i * element_bytes_, static_cast<float>(normal), random.bits());
  }
}

void Noise::fill(void* to, std::size_t count, std::uint64_t key) const {
  auto* out = static_cast<std::byte*>(to);
  for (std::uint64_t run = 0; count > 0; ++run) {
    const std::size_t place = mix(mix(key ^ seed_) + run) % kTableSize;
    const std::size_t bytes = std::min(count, kLongestRun) * element_bytes_;
    std::memcpy(out, table_.data() + place * element_bytes_, bytes);
    out += bytes;
    count -= std::min(count, kLongestRun);
  }
}

float Noise::scale() const noexcept { return dtype_ == DType::kInt8 ? 1 / kInt8Steps : 1; }

std::uint64_t noise_key(std::uint64_t request, std::int32_t layer, NoiseTensor tensor,
                        std::int64_t position) {
  constexpr int kPositionBits = 40;
  constexpr int kTensorBits = 2;
  const auto place = static_cast<std::uint64_t>(position) |
                     (static_cast<std::uint64_t>(tensor) << kPositionBits) |
                     (static_cast<std::uint64_t>(layer) << (kPositionBits + kTensorBits));
  return mix(request) ^ mix(~place);
}

}  // namespace quire::tool
