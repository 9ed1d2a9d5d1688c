// SPDX-License-Identifier: Apache-2.0
#include "common/base64.hpp"

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace quire::tool {

std::string base64(std::span<const std::byte> bytes) {
  constexpr std::string_view kLetters =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  constexpr std::size_t kGroup = 3;  // bytes, four letters
  constexpr std::size_t kLettersPerGroup = 4;
  constexpr std::uint32_t kSix = 0x3f;
  std::string text;
  text.reserve((bytes.size() + kGroup - 1) / kGroup * kLettersPerGroup);
  for (std::size_t at = 0; at < bytes.size(); at += kGroup) {
    const std::size_t present = std::min(kGroup, bytes.size() - at);
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < kGroup; ++i) {
      bits = bits << 8 | (i < present ? std::to_integer<std::uint32_t>(bytes[at + i]) : 0);
    }
    for (std::size_t letter = 0; letter < kLettersPerGroup; ++letter) {
      const std::uint32_t six = bits >> (6 * (kGroup - letter)) & kSix;
      text += letter <= present ? kLetters[six] : '=';
    }
  }
  return text;
}

}  // namespace quire::tool
