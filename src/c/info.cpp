// SPDX-License-Identifier: Apache-2.0
// What this build and this machine offer. The strings are kept for as long as the process lives.
#include "quire/info.hpp"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "c/convert.hpp"
#include "c/info.hpp"
#include "c/structs.hpp"

namespace quire::c {
namespace {

struct KeptDevice {
  Device device;
  std::string name;
  std::string facts;
};

// Never destroyed: clients may hold the strings until the last of their threads ends.
const std::vector<KernelInfo>& kept_kernels() {
  static const auto& kept = *new std::vector<KernelInfo>(kernels());
  return kept;
}

std::vector<KeptDevice> describe_devices() {
  std::vector<KeptDevice> described;
  for (const DeviceInfo& info : devices()) {
    KeptDevice& kept = described.emplace_back(KeptDevice{info.device, info.name, {}});
    for (const auto& [key, value] : info.facts) kept.facts += fmt::format("{}: {}\n", key, value);
  }
  return described;
}

const std::vector<KeptDevice>& kept_devices() {
  static const auto& kept = *new std::vector<KeptDevice>(describe_devices());
  return kept;
}

Status no_such(std::string_view function, std::size_t count, std::size_t index) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("[{}] index: expected less than {}, got {}", function, count, index)};
}

Status get_kernel(std::size_t index, quire_kernel_info* out) {
  constexpr std::string_view kFunction = "quire_kernel_get";
  if (index >= kept_kernels().size()) return no_such(kFunction, kept_kernels().size(), index);
  const KernelInfo& kernel = kept_kernels()[index];
  quire_kernel_info info = QUIRE_KERNEL_INFO_INIT;
  info.name = kernel.name.c_str();
  info.summary = kernel.summary.c_str();
  info.q_dtypes = kernel.q_dtypes.c_str();
  info.kv_dtypes = kernel.kv_dtypes.c_str();
  info.head_dims = kernel.head_dims.c_str();
  info.masks = kernel.masks.c_str();
  info.options = kernel.options.c_str();
  info.kv_scales = kernel.kv_scales.c_str();
  info.device_type = static_cast<std::int32_t>(kernel.device);
  return write_struct(kFunction, "info", info, out);
}

Status get_device(std::size_t index, quire_device_info* out) {
  constexpr std::string_view kFunction = "quire_device_get";
  if (index >= kept_devices().size()) return no_such(kFunction, kept_devices().size(), index);
  const KeptDevice& device = kept_devices()[index];
  quire_device_info info = QUIRE_DEVICE_INFO_INIT;
  info.device = to_c(device.device);
  info.name = device.name.c_str();
  info.facts = device.facts.c_str();
  return write_struct(kFunction, "info", info, out);
}

}  // namespace

const char* kernel_name(std::string_view name) {
  for (const KernelInfo& kernel : kept_kernels()) {
    if (kernel.name == name) return kernel.name.c_str();
  }
  return nullptr;
}

}  // namespace quire::c

extern "C" {

size_t quire_kernel_count(void) noexcept {
  size_t count = 0;
  quire::c::guarded([&] {
    count = quire::c::kept_kernels().size();
    return quire::Status();
  });
  return count;
}

quire_status quire_kernel_get(size_t index, quire_kernel_info* info) noexcept {
  return quire::c::guarded([&] { return quire::c::get_kernel(index, info); });
}

size_t quire_device_count(void) noexcept {
  size_t count = 0;
  quire::c::guarded([&] {
    count = quire::c::kept_devices().size();
    return quire::Status();
  });
  return count;
}

quire_status quire_device_get(size_t index, quire_device_info* info) noexcept {
  return quire::c::guarded([&] { return quire::c::get_device(index, info); });
}

}  // extern "C"
