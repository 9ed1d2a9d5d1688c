// SPDX-License-Identifier: Apache-2.0
#include "replay/prompt.hpp"

#include <algorithm>

namespace quire::tool {
namespace {

// A number of 31 bits without pattern (the finaliser of splitmix64).
std::int32_t token_of(std::uint64_t number) {
  number += 0x9e3779b97f4a7c15ULL;
  number = (number ^ (number >> 30U)) * 0xbf58476d1ce4e5b9ULL;
  number = (number ^ (number >> 27U)) * 0x94d049bb133111ebULL;
  constexpr int kAllBut31 = 33;
  return static_cast<std::int32_t>(number >> kAllBut31);
}

constexpr std::uint64_t kOwn = std::uint64_t{1} << 62U;  // apart from all blocks
constexpr int kPositionBits = 24;
static_assert(kMostTokens <= std::int64_t{1} << kPositionBits);

}  // namespace

std::int32_t answer_token(std::uint64_t request, std::int32_t position) {
  return token_of(kOwn + (request << kPositionBits) + static_cast<std::uint64_t>(position));
}

void write_prompt(const TraceRequest& request, std::uint64_t id,
                  std::vector<std::int32_t>& tokens) {
  tokens.resize(static_cast<std::size_t>(request.input_tokens));
  for (std::int32_t position = 0; position < request.input_tokens; ++position) {
    const auto block = static_cast<std::size_t>(position / kBlockTokens);
    std::int32_t& token = tokens[static_cast<std::size_t>(position)];
    if (block < request.blocks.size()) {
      const auto offset = static_cast<std::uint64_t>(position % kBlockTokens);
      token = token_of(std::uint64_t{request.blocks[block]} * kBlockTokens + offset);
    } else {
      token = answer_token(id, position);
    }
  }
}

}  // namespace quire::tool
