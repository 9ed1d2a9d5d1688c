// SPDX-License-Identifier: Apache-2.0
#include "device/place.hpp"

#include <cstdlib>
#include <cstring>

#include "common/buffer.hpp"

namespace quire::tool {
namespace {

class HostPlace final : public Place {
 public:
  explicit HostPlace(const HostMemory& memory) : memory_(memory) {}

  [[nodiscard]] Device device() const override { return Device::cpu(); }
  [[nodiscard]] void* stream() const override { return nullptr; }
  [[nodiscard]] std::byte* allocate(std::size_t bytes) override {
    std::byte* const data = allocate_on(memory_.pages, bytes);
    if (memory_.executor != nullptr) first_touch({data, bytes}, *memory_.executor);
    return data;
  }
  void release(std::byte* data) noexcept override { std::free(data); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void fill(void* to, int byte, std::size_t bytes) override {
    if (bytes > 0) std::memset(to, byte, bytes);
  }
  void synchronize() override {}

 private:
  const HostMemory memory_;
};

}  // namespace

std::unique_ptr<Place> open_place(Device device, const HostMemory& memory) {
  if (device.type == DeviceType::kCpu) return std::make_unique<HostPlace>(memory);
  return open_gpu(device);
}

}  // namespace quire::tool
