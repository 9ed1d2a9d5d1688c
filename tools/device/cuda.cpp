// SPDX-License-Identifier: Apache-2.0
// A GPU through the CUDA runtime.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <nvtx3/nvtx3.hpp>
#include <utility>

#include "common/exit_code.hpp"
#include "common/format.hpp"
#include "device/kernels.hpp"
#include "device/matmul.hpp"
#include "device/place.hpp"

namespace quire::tool {
namespace {

constexpr double kMicrosecondsPerMillisecond = 1000;

void require(cudaError_t error, const char* operation) {
  if (error == cudaSuccess) return;
  throw CommandError(ExitCode::kFailed,
                     fmt::format("CUDA: {}: {} ({})", operation, cudaGetErrorString(error),
                                 cudaGetErrorName(error)));
}

class Event {
 public:
  Event() { require(cudaEventCreate(&event_), "making an event"); }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  void record(cudaStream_t stream) { require(cudaEventRecord(event_, stream), "an event"); }
  [[nodiscard]] double microseconds_since(const Event& start) const {
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, start.event_, event_), "reading events");
    return milliseconds * kMicrosecondsPerMillisecond;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(cudaGraph_t graph) {
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    require(error, "instantiating a graph");
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  [[nodiscard]] cudaGraphExec_t executable() const { return executable_; }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

/// The library's ranges are in it too.
struct NvtxDomain {
  static constexpr const char* name = "quire";
};

class CudaGpu final : public Gpu {
 public:
  explicit CudaGpu(Device device) : device_(device) {
    require(cudaSetDevice(device.index), "choosing the device");
    require(cudaGetDeviceProperties(&properties_, device.index), "asking for its properties");
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    require(cudaMalloc(&sink_, sizeof(unsigned)), "allocating");
  }
  CudaGpu(const CudaGpu&) = delete;
  CudaGpu& operator=(const CudaGpu&) = delete;
  ~CudaGpu() override {
    cudaFree(sink_);
    cudaStreamDestroy(stream_);
  }

  [[nodiscard]] Device device() const override { return device_; }
  [[nodiscard]] void* stream() const override { return stream_; }
  [[nodiscard]] std::string name() const override { return properties_.name; }
  [[nodiscard]] std::size_t free_bytes() const override {
    std::size_t free = 0;
    std::size_t total = 0;
    require(cudaMemGetInfo(&free, &total), "asking for free memory");
    return free;
  }

  [[nodiscard]] std::byte* allocate(std::size_t bytes) override {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, std::max<std::size_t>(bytes, 1));
    if (error == cudaErrorMemoryAllocation) {
      throw CommandError(ExitCode::kFailed,
                         fmt::format("cannot allocate {} on the device, where {} are free",
                                     human_bytes(bytes), human_bytes(free_bytes())));
    }
    require(error, "allocating");
    return static_cast<std::byte*>(data);
  }
  void release(std::byte* data) noexcept override { cudaFree(data); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying");
  }
  void fill(void* to, int byte, std::size_t bytes) override {
    require(cudaMemsetAsync(to, byte, bytes, stream_), "filling");
  }
  void synchronize() override { require(cudaStreamSynchronize(stream_), "running"); }
  void begin_range(const char* name, std::int64_t number) noexcept override {
    nvtxDomainRangePushEx(nvtx3::domain::get<NvtxDomain>(),
                          nvtx3::event_attributes(name, nvtx3::payload(number)).get());
  }
  void end_range() noexcept override { nvtxDomainRangePop(nvtx3::domain::get<NvtxDomain>()); }

  [[nodiscard]] std::unique_ptr<Graph> capture(const std::function<void()>& body) override;
  void launch(Graph& graph) override {
    require(cudaGraphLaunch(static_cast<CudaGraph&>(graph).executable(), stream_),
            "launching a graph");
  }
  [[nodiscard]] std::vector<double> time(Graph& graph, std::int32_t repetitions,
                                         const std::function<void()>& before) override;

  void do_nothing() override { require(launch_nothing(stream_), "launching a kernel"); }
  void read(const std::byte* data, std::size_t bytes) override {
    require(launch_read(data, bytes, properties_.multiProcessorCount, sink_, stream_),
            "launching a kernel");
  }
  bool multiply(std::byte* c, const std::byte* a, const std::byte* b, std::int32_t n) override {
    if (matmul_ == nullptr) matmul_ = open_matmul();
    if (matmul_ == nullptr) return false;
    matmul_->multiply(c, a, b, n, stream_);
    return true;
  }

 private:
  Device device_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  void* sink_ = nullptr;
  std::unique_ptr<Matmul> matmul_;
};

std::unique_ptr<Graph> CudaGpu::capture(const std::function<void()>& body) {
  require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "beginning a capture");
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    // Leaves the stream usable; what the body threw says what was wrong.
    if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    throw;
  }
  require(cudaStreamEndCapture(stream_, &graph), "ending a capture");
  return std::make_unique<CudaGraph>(graph);
}

std::vector<double> CudaGpu::time(Graph& graph, std::int32_t repetitions,
                                  const std::function<void()>& before) {
  struct Lap {
    Event start, stop;
  };
  std::vector<Lap> laps(static_cast<std::size_t>(repetitions));
  for (Lap& lap : laps) {
    before();  // keeps the GPU busy until the host has put the launch behind it
    lap.start.record(stream_);
    launch(graph);
    lap.stop.record(stream_);
  }
  synchronize();
  std::vector<double> microseconds;
  for (const Lap& lap : laps) microseconds.push_back(lap.stop.microseconds_since(lap.start));
  return microseconds;
}

}  // namespace

std::unique_ptr<Gpu> open_gpu(Device device) {
  int count = 0;
  // No driver, one that is too old and no GPU come to the same.
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    throw CommandError(ExitCode::kNoDevice,
                       "--device cuda: expected a CUDA device, found none (see quire info)");
  }
  if (device.index >= count) {
    throw CommandError(ExitCode::kNoDevice,
                       fmt::format("--device cuda:{}: expected a CUDA device from 0 to {} (see "
                                   "quire info)",
                                   device.index, count - 1));
  }
  return std::make_unique<CudaGpu>(device);
}

}  // namespace quire::tool
