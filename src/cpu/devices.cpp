// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include <fstream>
#include <string>

#include "core/backend.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/tier.hpp"

namespace quire::cpu {
namespace {

/// The processor's own name, or "cpu" where the system does not tell.
std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "cpu";
}

/// Physical memory in GiB, or 0 where the system does not tell.
double memory_gib() {
#if defined(_SC_PHYS_PAGES)
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<double>(sysconf(_SC_PAGE_SIZE)) / kGiB;
#else
  return 0.0;
#endif
}

/// Names of the kernels that this machine has the instructions for, the preferred one first.
std::string runnable_kernels() {
  std::string names;
  for (const core::KernelRow& row : kernel_rows()) {
    if (!row.missing.empty()) continue;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  return names;
}

}  // namespace

std::vector<DeviceInfo> devices() {
  DeviceInfo info;
  info.device = Device::cpu();
  info.name = processor_name();
  info.facts = {{"kernels", runnable_kernels()},
                {"cores", fmt::format("{}", available_cores())},
                {"threads", fmt::format("{}", default_executor().concurrency())},
                {"memory", fmt::format("{:.0f} GiB", memory_gib())}};
  return {info};
}

}  // namespace quire::cpu
