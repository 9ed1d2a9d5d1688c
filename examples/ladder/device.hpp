// SPDX-License-Identifier: Apache-2.0
/// @file
/// A workload in device memory, and how long work on it takes. Failures are thrown.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "plan.hpp"
#include "problem.hpp"
#include "workloads.hpp"

namespace ladder {

/// Throws what failed, in words. @param doing  "filling the pages".
void require(cudaError_t error, const char* doing);

/// Memory of the device.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size) : size_(size) {
    require(cudaMalloc(&data_, size > 0 ? size : 1), "allocating memory of the device");
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data_); }

  template <typename T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] std::size_t size() const { return size_; }
  /// In every float format, NaN.
  void poison() const { require(cudaMemset(data_, 0xff, size_), "filling memory"); }
  void clear() const { require(cudaMemset(data_, 0, size_), "filling memory"); }

 private:
  void* data_ = nullptr;
  std::size_t size_;
};

/// Host memory's copy in device memory.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : bytes_(values.size() * sizeof(T)) {
    upload(values);
  }
  [[nodiscard]] T* data() const { return bytes_.template as<T>(); }
  void upload(const std::vector<T>& values) const {
    require(cudaMemcpy(bytes_.as<T>(), values.data(), values.size() * sizeof(T),
                       cudaMemcpyHostToDevice),
            "copying to the device");
  }

 private:
  DeviceBytes bytes_;
};

/// Q, the pages and the tables. All that no request may read is NaN: other tokens of its last page,
/// pages that no table names.
template <typename T>
class DeviceWorkload {
 public:
  explicit DeviceWorkload(const Workload& workload);

  [[nodiscard]] const Problem<T>& problem() const { return problem_; }
  /// Another table of the same size.
  void set_page_table(const std::vector<int>& page_table) const { page_table_.upload(page_table); }
  void poison_output() const { o_.poison(); }
  [[nodiscard]] std::vector<float> output() const;
  [[nodiscard]] PageError page_error() const;

 private:
  DeviceBytes q_;
  DeviceBytes k_pages_;
  DeviceBytes v_pages_;
  DeviceBytes o_;
  DeviceBytes error_;
  DeviceArray<int> page_table_;
  DeviceArray<RequestInfo> requests_;
  Problem<T> problem_{};
};

/// A plan, with room for its parts. A plan of one part writes the problem's o at once.
class DevicePlan {
 public:
  DevicePlan(const Plan& plan, const Problem<__nv_bfloat16>& problem);
  [[nodiscard]] const PlanView& view() const { return view_; }

 private:
  DeviceArray<Segment> segments_;
  DeviceArray<int> members_;
  DeviceArray<int> num_parts_;
  DeviceBytes o_;
  DeviceBytes states_;
  PlanView view_{};
};

/// What goes on a stream.
using Work = std::function<void(cudaStream_t)>;

/// Runs it once and waits. Throws what went wrong in a launch or in a kernel.
void run_once(const Work& work);

/// The median time of a replay in µs. The work is captured in a CUDA graph, so that the host's own
/// time does not count; before each replay 256 MiB are read, so that the second-level cache holds
/// nothing of the work's.
double median_microseconds(const Work& work, int repetitions);

}  // namespace ladder
