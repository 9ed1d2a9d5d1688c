// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime.hpp"

#include <fmt/format.h>

namespace quire::cuda {

Status status_of(std::string_view operation, cudaError_t error) noexcept {
  if (error == cudaSuccess) return {};
  try {
    return {error == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDeviceError,
            fmt::format("[{}] the CUDA runtime reported {}: {}", operation, cudaGetErrorName(error),
                        cudaGetErrorString(error))};
  } catch (const std::exception&) {
    return {ErrorCode::kDeviceError, cudaGetErrorName(error)};
  }
}

void throw_if_error(std::string_view operation, cudaError_t error) {
  status_of(operation, error).throw_if_error();
}

CurrentDevice::CurrentDevice(Device device) noexcept : error_(cudaGetDevice(&former_)) {
  if (error_ != cudaSuccess || former_ == device.index) return;
  error_ = cudaSetDevice(device.index);
  changed_ = error_ == cudaSuccess;
}

CurrentDevice::~CurrentDevice() {
  if (changed_) cudaSetDevice(former_);
}

}  // namespace quire::cuda
