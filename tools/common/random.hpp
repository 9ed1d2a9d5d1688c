// SPDX-License-Identifier: Apache-2.0
/// @file
/// Random numbers that are the same with every standard library.
#pragma once

#include <cstdint>

namespace quire::tool {

/// Mixes 64 bits so that neighbouring inputs give unrelated outputs (the finaliser of SplitMix64).
constexpr std::uint64_t mix(std::uint64_t bits) noexcept {
  bits += 0x9e3779b97f4a7c15ULL;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ULL;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebULL;
  return bits ^ (bits >> 31);
}

/// A counter run through `mix`.
class Random {
 public:
  explicit constexpr Random(std::uint64_t seed) noexcept : state_(mix(seed)) {}

  constexpr std::uint64_t bits() noexcept { return mix(state_++); }

  /// @return Uniform in [0, 1).
  constexpr double uniform() noexcept {
    constexpr double kStep = 1.0 / 9007199254740992.0;  // 2^-53
    return static_cast<double>(bits() >> 11) * kStep;
  }

  /// @return Uniform in [low, high], low ≤ high.
  constexpr std::int32_t between(std::int32_t low, std::int32_t high) noexcept {
    const double span = static_cast<double>(high) - low + 1;
    return low + static_cast<std::int32_t>(uniform() * span);
  }

 private:
  std::uint64_t state_;
};

}  // namespace quire::tool
