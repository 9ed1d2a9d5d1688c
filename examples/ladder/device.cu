// SPDX-License-Identifier: Apache-2.0
#include "device.hpp"

#include <cuda_runtime.h>

#include <algorithm>

namespace ladder {
namespace {

constexpr int kThreads = 256;
constexpr int kFillBlocks = 64;  // per request
constexpr std::size_t kFlushBytes = std::size_t{256} << 20;
constexpr int kWarmUps = 3;

template <typename T>
__device__ T from_float(float value) {
  return T(value);
}

template <typename T>
__global__ void fill_q(T* q, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    q[i] = from_float<T>(noise(NoiseOf::kQ, i));
  }
}

/// Every token that a request has; what requests share is written more than once, and the same.
template <typename T>
__global__ void fill_pages(Problem<T> problem, T* k_pages, T* v_pages) {
  const RequestInfo request = problem.requests[blockIdx.y];
  const int row = problem.num_kv_heads * kHeadDim;
  for (int token = static_cast<int>(blockIdx.x); token < request.seq_len;
       token += static_cast<int>(gridDim.x)) {
    const int page = get_physical_page(problem, request, token / kPageSize);
    if (page == kNoPage) continue;
    const std::int64_t first = token_offset(problem, page, token % kPageSize, 0);
    for (int i = static_cast<int>(threadIdx.x); i < row; i += static_cast<int>(blockDim.x)) {
      k_pages[first + i] = from_float<T>(noise(NoiseOf::kK, first + i));
      v_pages[first + i] = from_float<T>(noise(NoiseOf::kV, first + i));
    }
  }
}

__global__ void read_all(const uint4* data, std::size_t count, unsigned* sink) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  unsigned sum = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 loaded = data[i];
    sum ^= loaded.x ^ loaded.y ^ loaded.z ^ loaded.w;
  }
  if (sum == 1) *sink = sum;  // practically never, but the compiler cannot know
}

/// A stream, a graph of some work, and events, for as long as a measurement takes.
class GraphTimer {
 public:
  explicit GraphTimer(const Work& work) : cold_(kFlushBytes), sink_(sizeof(unsigned)) {
    cold_.clear();
    require(cudaDeviceSynchronize(), "clearing memory");
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    require(cudaEventCreate(&start_), "creating an event");
    require(cudaEventCreate(&stop_), "creating an event");
    require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
            "beginning a capture");
    work(stream_);
    require(cudaGetLastError(), "launching into a capture");
    require(cudaStreamEndCapture(stream_, &graph_), "ending a capture");
    require(cudaGraphInstantiate(&executable_, graph_, 0), "instantiating a graph");
  }
  GraphTimer(const GraphTimer&) = delete;
  GraphTimer& operator=(const GraphTimer&) = delete;
  ~GraphTimer() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }

  double replay() {
    // The flush keeps the device busy until the host has put the replay behind it.
    read_all<<<1024, kThreads, 0, stream_>>>(cold_.as<uint4>(), kFlushBytes / sizeof(uint4),
                                             sink_.as<unsigned>());
    require(cudaGetLastError(), "flushing the cache");
    require(cudaEventRecord(start_, stream_), "recording an event");
    require(cudaGraphLaunch(executable_, stream_), "launching a graph");
    require(cudaEventRecord(stop_, stream_), "recording an event");
    require(cudaEventSynchronize(stop_), "replaying a graph");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, start_, stop_), "reading a time");
    return 1e3 * double{milliseconds};
  }

 private:
  DeviceBytes cold_;
  DeviceBytes sink_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

void require(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

template <typename T>
DeviceWorkload<T>::DeviceWorkload(const Workload& workload)
    : q_(static_cast<std::size_t>(workload.num_rows()) * kHeadDim * sizeof(T)),
      k_pages_(static_cast<std::size_t>(workload.num_pages) * kPageSize *
               static_cast<std::size_t>(workload.num_kv_heads) * kHeadDim * sizeof(T)),
      v_pages_(k_pages_.size()),
      o_(static_cast<std::size_t>(workload.num_rows()) * kHeadDim * sizeof(float)),
      error_(sizeof(PageError)),
      page_table_(workload.page_table),
      requests_(workload.requests) {
  problem_ = {.q = q_.as<T>(),
              .k_pages = k_pages_.as<T>(),
              .v_pages = v_pages_.as<T>(),
              .page_table = page_table_.data(),
              .requests = requests_.data(),
              .o = o_.as<float>(),
              .error = error_.as<PageError>(),
              .batch = workload.batch(),
              .total_queries = workload.batch(),
              .num_pages = workload.num_pages,
              .num_qo_heads = workload.num_qo_heads,
              .num_kv_heads = workload.num_kv_heads};
  error_.clear();
  k_pages_.poison();
  v_pages_.poison();
  fill_q<<<1024, kThreads>>>(q_.as<T>(), std::int64_t{problem_.num_rows()} * kHeadDim);
  require(cudaGetLastError(), "filling q");
  const dim3 grid(kFillBlocks, static_cast<unsigned>(workload.batch()));
  fill_pages<<<grid, kThreads>>>(problem_, k_pages_.as<T>(), v_pages_.as<T>());
  require(cudaGetLastError(), "filling the pages");
  require(cudaDeviceSynchronize(), "filling the pages");
}

template <typename T>
std::vector<float> DeviceWorkload<T>::output() const {
  std::vector<float> o(o_.size() / sizeof(float));
  require(cudaMemcpy(o.data(), o_.as<float>(), o_.size(), cudaMemcpyDeviceToHost), "reading o");
  return o;
}

template <typename T>
PageError DeviceWorkload<T>::page_error() const {
  PageError error{};
  require(cudaMemcpy(&error, error_.as<PageError>(), sizeof error, cudaMemcpyDeviceToHost),
          "reading the page error");
  return error;
}

template class DeviceWorkload<float>;
template class DeviceWorkload<__nv_bfloat16>;

DevicePlan::DevicePlan(const Plan& plan, const Problem<__nv_bfloat16>& problem)
    : segments_(plan.segments),
      members_(plan.members),
      num_parts_(plan.num_parts),
      o_(static_cast<std::size_t>(plan.max_parts) * static_cast<std::size_t>(problem.num_rows()) *
         kHeadDim * sizeof(float)),
      states_(static_cast<std::size_t>(plan.max_parts) *
              static_cast<std::size_t>(problem.num_rows()) * sizeof(SoftmaxState)) {
  o_.poison();
  states_.poison();
  view_ = {.segments = segments_.data(),
           .members = members_.data(),
           .num_parts = num_parts_.data(),
           .num_segments = static_cast<int>(plan.segments.size()),
           .o = o_.as<float>(),
           .states = states_.as<SoftmaxState>()};
}

void run_once(const Work& work) {
  work(nullptr);
  require(cudaGetLastError(), "launching");
  require(cudaDeviceSynchronize(), "running");
}

double median_microseconds(const Work& work, int repetitions) {
  GraphTimer timer(work);
  for (int i = 0; i < kWarmUps; ++i) timer.replay();
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) times.push_back(timer.replay());
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace ladder
