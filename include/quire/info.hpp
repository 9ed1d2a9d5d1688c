// SPDX-License-Identifier: Apache-2.0
/// @file
/// What this build and this machine offer, for bug reports and support matrices.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "quire/export.h"
#include "quire/tensor.hpp"

namespace quire {
inline namespace v0 {

/// A kernel and all that it serves, in words, from the table that dispatches.
struct KernelInfo {
  std::string name;                      ///< e.g. "cpu.portable"
  DeviceType device = DeviceType::kCpu;  ///< Where it runs.
  std::string summary;                   ///< one line
  std::string q_dtypes;                  ///< e.g. "float32, float16, bfloat16"
  std::string kv_dtypes;                 ///< e.g. "float32, float16, bfloat16"
  std::string head_dims;                 ///< e.g. "multiples of 8 up to 512, qk ≠ vo allowed"
  std::string masks;                     ///< e.g. "none, causal, tree, full"
  std::string options;                   ///< e.g. "window, soft cap, sinks, ALiBi, contiguous K/V"
  std::string kv_scales;                 ///< e.g. "none, per tensor, per head"
};

/// A device that this process can use.
struct DeviceInfo {
  Device device;                                           ///< As the other calls take it.
  std::string name;                                        ///< As its maker calls it.
  std::vector<std::pair<std::string, std::string>> facts;  ///< e.g. {"memory", "139 GiB"}
};

/// @return The kernels of this build, in the order in which they are considered. Allocates.
[[nodiscard]] QUIRE_API std::vector<KernelInfo> kernels();

/// @return The CPU, then the CUDA devices that are present (none if CUDA is not built or there is
/// no driver). Allocates; may initialise the driver.
[[nodiscard]] QUIRE_API std::vector<DeviceInfo> devices();

}  // namespace v0
}  // namespace quire
