// SPDX-License-Identifier: Apache-2.0
// Fences are events that keep no time.
#include "quire/fence.hpp"

#include <cuda_runtime_api.h>

#include "core/backend.hpp"
#include "cuda/runtime.hpp"

namespace quire::cuda {
namespace {

constexpr std::string_view kOperation = "fence";

class CudaFence final : public internal::FenceBackend {
 public:
  explicit CudaFence(Device device) : device_(device) {
    const CurrentDevice current(device);
    throw_if_error(kOperation, current.error());
    throw_if_error(kOperation, cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  CudaFence(const CudaFence&) = delete;
  CudaFence& operator=(const CudaFence&) = delete;
  ~CudaFence() override { cudaEventDestroy(event_); }

  Status record(void* stream) noexcept override {
    return on_device([&] { return cudaEventRecord(event_, static_cast<cudaStream_t>(stream)); });
  }
  Status query(bool& reached) const noexcept override {
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaSuccess || error == cudaErrorNotReady) {
      reached = error == cudaSuccess;
      return {};
    }
    return status_of(kOperation, error);
  }
  Status wait(void* stream) const noexcept override {
    return on_device(
        [&] { return cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event_); });
  }
  Status synchronize() const noexcept override {
    return status_of(kOperation, cudaEventSynchronize(event_));
  }

 private:
  /// The default stream is the current device's.
  template <typename Call>
  Status on_device(Call call) const noexcept {
    const CurrentDevice current(device_);
    return status_of(kOperation, current.error() == cudaSuccess ? call() : current.error());
  }

  Device device_;
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::unique_ptr<internal::FenceBackend> make_fence(Device device) {
  return std::make_unique<CudaFence>(device);
}

}  // namespace quire::cuda
