// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "bench/measurement.hpp"
#include "device/place.hpp"

namespace quire::tool {

/// Times work on a GPU as a step of an engine meets it: replayed as a graph, with a second-level
/// cache that holds other things. Times begin and end with events around the launch, so that they
/// include it; `empty_us()` is what a kernel takes that does nothing.
class ColdTimer {
 public:
  /// @param repetitions  Of each measurement.
  ColdTimer(Gpu& gpu, std::int32_t repetitions);

  /// @param body  Puts the work on the GPU's stream. Has been run before, if that makes something
  ///   ready that must not be captured.
  /// @return Microseconds of each repetition.
  [[nodiscard]] std::vector<double> time(const std::function<void()>& body);
  [[nodiscard]] double empty_us() const { return empty_us_; }
  [[nodiscard]] Gpu& gpu() const { return gpu_; }

  /// Reads memory that no cache holds, and multiplies 8192 × 8192 matrices of bfloat16 if there is
  /// a library for it. Takes about half a second.
  [[nodiscard]] Ceilings measure_ceilings();

 private:
  void warm_up();
  [[nodiscard]] double read_gb_per_s();
  [[nodiscard]] double multiply_gflop_per_s();

  Gpu& gpu_;
  std::int32_t repetitions_;
  DeviceMemory cold_;  // what is read before each repetition, and for the ceiling
  double empty_us_ = 0;
};

}  // namespace quire::tool
