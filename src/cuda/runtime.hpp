// SPDX-License-Identifier: Apache-2.0
/// @file
/// The CUDA runtime in the library's terms: errors as `Status`, the current device as a scope.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "quire/error.hpp"
#include "quire/tensor.hpp"

namespace quire::cuda {

/// @return Ok, or `kDeviceError` with the runtime's own name and words for what `operation` met.
Status status_of(std::string_view operation, cudaError_t error) noexcept;

/// @throws Error what `status_of` would return, if it is not ok.
void throw_if_error(std::string_view operation, cudaError_t error);

/// Makes a device the calling thread's current one and puts the former back at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(Device device) noexcept;
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice();

  /// @return Why the device could not be made current, or `cudaSuccess`.
  [[nodiscard]] cudaError_t error() const noexcept { return error_; }

 private:
  int former_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

}  // namespace quire::cuda
