// SPDX-License-Identifier: Apache-2.0
#include "quire/fence.hpp"

#include "core/backend.hpp"

namespace quire {
inline namespace v0 {

Fence::Fence(Device device)
    : backend_(device.type == DeviceType::kCuda ? cuda::make_fence(device) : nullptr) {}
Fence::Fence(Fence&&) noexcept = default;
Fence& Fence::operator=(Fence&&) noexcept = default;
Fence::~Fence() = default;

Status Fence::record(void* stream) noexcept {
  return backend_ == nullptr ? Status() : backend_->record(stream);
}

Status Fence::query(bool& reached) const noexcept {
  if (backend_ != nullptr) return backend_->query(reached);
  reached = true;
  return {};
}

Status Fence::wait(void* stream) const noexcept {
  return backend_ == nullptr ? Status() : backend_->wait(stream);
}

Status Fence::synchronize() const noexcept {
  return backend_ == nullptr ? Status() : backend_->synchronize();
}

}  // namespace v0
}  // namespace quire
