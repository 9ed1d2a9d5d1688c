// SPDX-License-Identifier: Apache-2.0
#include "common/noise_block.hpp"

#include <algorithm>
#include <cstring>

namespace quire::tool {

NoiseBlock::NoiseBlock(const Noise& noise, std::size_t count, std::uint64_t key)
    : element_bytes_(size_of(noise.dtype())),
      block_(std::min(count, kMostElements) * element_bytes_) {
  noise.fill(block_.data(), std::min(count, kMostElements), key);
}

void NoiseBlock::fill(Place& place, const DeviceMemory& memory) const {
  std::size_t filled = std::min(block_.size(), memory.size());
  memory.upload(block_.bytes().first(filled));
  while (filled < memory.size()) {  // what is there is whole blocks, so it may follow itself
    const std::size_t more = std::min(filled, memory.size() - filled);
    place.copy(memory.data() + filled, memory.data(), more);
    filled += more;
  }
}

void NoiseBlock::tell(std::size_t element, std::span<std::byte> to) const {
  std::size_t at = element * element_bytes_ % block_.size();
  while (!to.empty()) {
    const std::size_t run = std::min(to.size(), block_.size() - at);
    std::memcpy(to.data(), block_.data() + at, run);
    to = to.subspan(run);
    at = 0;
  }
}

}  // namespace quire::tool
