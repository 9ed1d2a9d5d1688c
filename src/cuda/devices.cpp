// SPDX-License-Identifier: Apache-2.0
// The GPUs of this machine, for `quire info`.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "core/backend.hpp"

namespace quire::cuda {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

/// CUDA counts versions as 1000 · major + 10 · minor.
std::string version_text(int version) {
  return fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10);
}

DeviceInfo describe(int index, int driver_version, int runtime_version) {
  cudaDeviceProp properties{};
  DeviceInfo info;
  info.device = Device::cuda(index);
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    info.name = "unknown";
    info.facts = {{"error", cudaGetErrorString(error)}};
    return info;
  }
  info.name = properties.name;
  info.facts = {
      {"architecture", fmt::format("sm_{}{}", properties.major, properties.minor)},
      {"multiprocessors", fmt::format("{}", properties.multiProcessorCount)},
      {"memory", fmt::format("{:.1f} GiB", static_cast<double>(properties.totalGlobalMem) / kGiB)},
      {"driver", fmt::format("serves up to {}", version_text(driver_version))},
      {"runtime", version_text(runtime_version)},
  };
  return info;
}

}  // namespace

std::vector<DeviceInfo> devices() {
  int count = 0;
  int driver_version = 0;
  int runtime_version = 0;
  // No driver, a driver that is too old and no GPU all mean that there is no device to list.
  if (cudaGetDeviceCount(&count) != cudaSuccess ||
      cudaDriverGetVersion(&driver_version) != cudaSuccess ||
      cudaRuntimeGetVersion(&runtime_version) != cudaSuccess) {
    return {};
  }
  std::vector<DeviceInfo> found;
  for (int index = 0; index < count; ++index) {
    found.push_back(describe(index, driver_version, runtime_version));
  }
  return found;
}

}  // namespace quire::cuda
