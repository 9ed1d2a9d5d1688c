// SPDX-License-Identifier: Apache-2.0
/// @file
/// The hash that leads to a page of a prefix cache. It only has to spread well and fast: what it
/// finds is compared token by token.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

namespace quire::cache {

/// @return The two halves of the product, folded: every bit of both factors reaches every result bit
///   that it can (wyhash by Wang Yi mixes like this).
inline std::uint64_t fold_product(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64U);
}

/// Odd numbers without pattern: the first bits of the fractions of √2, √3, √5 and √7.
inline constexpr std::uint64_t kRoot2 = 0x6a09e667f3bcc909U;
inline constexpr std::uint64_t kRoot3 = 0xbb67ae8584caa73bU;
inline constexpr std::uint64_t kRoot5 = 0x3c6ef372fe94f82bU;
inline constexpr std::uint64_t kRoot7 = 0xa54ff53a5f1d36f1U;

/// @return The first tokens that can be counted.
inline std::span<const std::int32_t> countable(std::span<const std::int32_t> tokens) noexcept {
  constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();
  return tokens.first(tokens.size() < kMost ? tokens.size() : kMost);
}

/// @return What the hash of a namespace's first page starts from.
inline std::uint64_t hash_root(std::uint64_t seed, std::uint64_t name_space) noexcept {
  return fold_product(name_space ^ kRoot2, seed ^ kRoot3);
}

/// @return The hash of a page that follows the page of hash `before`. Its products do not wait for
///   one another.
inline std::uint64_t hash_run(std::uint64_t before, std::span<const std::int32_t> run) noexcept {
  constexpr std::size_t kTokensAtOnce = 4;
  std::uint64_t sum = run.size();
  std::uint64_t salt = kRoot5;
  while (!run.empty()) {
    const std::size_t count = run.size() < kTokensAtOnce ? run.size() : kTokensAtOnce;
    std::uint64_t words[2] = {0, 0};
    if (count == kTokensAtOnce) {
      std::memcpy(words, run.data(), sizeof(words));
    } else {
      std::memcpy(words, run.data(), count * sizeof(std::int32_t));
    }
    sum += fold_product(words[0] ^ salt, words[1] ^ kRoot7);
    salt += kRoot3;
    run = run.subspan(count);
  }
  return fold_product(sum ^ before, std::rotl(before, 32) ^ kRoot2);
}

}  // namespace quire::cache
