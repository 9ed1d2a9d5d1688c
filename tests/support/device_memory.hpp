// SPDX-License-Identifier: Apache-2.0
/// @file
/// Memory, streams and graphs of a GPU for tests: bytes between guards, host memory with a copy on
/// the device, views moved from one to the other.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "quire/attention.hpp"

namespace quire::testing {

inline constexpr Device kGpu = Device::cuda(0);

inline void require(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " +
                             cudaGetErrorString(error));
  }
}

/// A stream that waits for no other: work that went to another stream shows as a race.
class Stream {
 public:
  Stream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  [[nodiscard]] cudaStream_t get() const { return stream_; }
  void synchronize() const { require(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// What a body puts on a stream, captured. Whatever allocates or synchronises fails the capture.
class Graph {
 public:
  template <typename Body>
  Graph(const Stream& stream, const Body& body) {
    require(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
    body();
    require(cudaStreamEndCapture(stream.get(), &graph_));
    require(cudaGraphInstantiate(&executable_, graph_, 0));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }

  void launch(const Stream& stream) const { require(cudaGraphLaunch(executable_, stream.get())); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

/// Bytes on the device, aligned as workspaces must be.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size) : size_(size) {
    void* data = nullptr;
    require(cudaMalloc(&data, std::max<std::size_t>(size, 1)));
    data_ = static_cast<std::byte*>(data);
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data_); }

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }

  void upload(std::span<const std::byte> from, std::size_t at, const Stream& stream) const {
    require(cudaMemcpyAsync(data_ + at, from.data(), from.size(), cudaMemcpyHostToDevice,
                            stream.get()));
  }
  void download(std::span<std::byte> to, std::size_t at, const Stream& stream) const {
    require(
        cudaMemcpyAsync(to.data(), data_ + at, to.size(), cudaMemcpyDeviceToHost, stream.get()));
    stream.synchronize();
  }
  void fill(std::byte value, const Stream& stream) const {
    require(cudaMemsetAsync(data_, std::to_integer<int>(value), size_, stream.get()));
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_;
};

/// Pinned memory of the host.
class PinnedBytes {
 public:
  explicit PinnedBytes(std::span<const std::byte> content) : size_(content.size()) {
    void* data = nullptr;
    require(cudaHostAlloc(&data, std::max<std::size_t>(size_, 1), cudaHostAllocDefault));
    data_ = static_cast<std::byte*>(data);
    std::ranges::copy(content, data_);
  }
  PinnedBytes(const PinnedBytes&) = delete;
  PinnedBytes& operator=(const PinnedBytes&) = delete;
  ~PinnedBytes() { cudaFreeHost(data_); }

  [[nodiscard]] std::span<std::byte> get() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_;
};

/// Bytes on the device that quire writes, with guards before and after them.
class GuardedBytes {
 public:
  GuardedBytes(std::size_t size, const Stream& stream) : bytes_(size + 2 * kGuard), size_(size) {
    bytes_.fill(kGuardByte, stream);
  }

  [[nodiscard]] std::byte* data() const { return bytes_.data() + kGuard; }
  [[nodiscard]] Workspace get() const { return {data(), size_}; }
  void upload(std::span<const std::byte> from, const Stream& stream) const {
    bytes_.upload(from, kGuard, stream);
  }
  [[nodiscard]] bool guards_are_untouched(const Stream& stream) const {
    std::vector<std::byte> guard(kGuard);
    for (const std::size_t at : {std::size_t{0}, kGuard + size_}) {
      bytes_.download(guard, at, stream);
      if (!std::ranges::all_of(guard, [](std::byte b) { return b == kGuardByte; })) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = kWorkspaceAlignment;
  static constexpr std::byte kGuardByte{0x5A};
  DeviceBytes bytes_;
  std::size_t size_;
};

/// Host memory and its copies on the device, in which views lie where they lie on the host.
class DeviceMirror {
 public:
  enum class Use { kRead, kWritten };

  /// @param shift  Bytes by which the copy's address is off from its alignment.
  void add(std::span<std::byte> host, Use use, const Stream& stream, std::size_t shift = 0) {
    copies_.push_back(Copy{host, use, shift, nullptr, nullptr});
    Copy& copy = copies_.back();
    // What is only read ends where its allocation does, so that a memory checker sees each byte
    // that is read beyond it.
    if (use == Use::kRead) {
      copy.exact = std::make_unique<DeviceBytes>(host.size() + shift);
    } else {
      copy.guarded = std::make_unique<GuardedBytes>(host.size() + shift, stream);
    }
    upload(copies_.size() - 1, host, stream);
  }

  /// Writes other bytes, as many, over a copy. The host's are as they were.
  void upload(std::size_t index, std::span<const std::byte> from, const Stream& stream) const {
    const Copy& copy = copies_.at(index);
    if (from.size() != copy.host.size()) throw std::logic_error("a mirror of another size");
    if (from.empty()) return;
    require(cudaMemcpyAsync(copy.device(), from.data(), from.size(), cudaMemcpyHostToDevice,
                            stream.get()));
  }
  void upload(const Stream& stream) const {
    for (std::size_t i = 0; i < copies_.size(); ++i) upload(i, copies_[i].host, stream);
  }

  /// Brings what quire wrote back to the host.
  void download(const Stream& stream) const {
    for (const Copy& copy : copies_) {
      if (copy.use != Use::kWritten || copy.host.empty()) continue;
      require(cudaMemcpyAsync(copy.host.data(), copy.device(), copy.host.size(),
                              cudaMemcpyDeviceToHost, stream.get()));
    }
    stream.synchronize();
  }

  [[nodiscard]] bool guards_are_untouched(const Stream& stream) const {
    return std::ranges::all_of(copies_, [&](const Copy& copy) {
      return copy.use == Use::kRead || copy.guarded->guards_are_untouched(stream);
    });
  }

  /// The view's like on the device. A view of no elements may lie nowhere.
  template <typename Void>
  [[nodiscard]] BasicTensorView<Void> on_device(BasicTensorView<Void> view) const {
    if (!view.given()) return view;
    view.device = kGpu;
    const auto* const at = static_cast<const std::byte*>(view.data);
    for (const Copy& copy : copies_) {
      if (at < copy.host.data() || at >= copy.host.data() + copy.host.size()) continue;
      view.data = copy.device() + (at - copy.host.data());
      return view;
    }
    view.data = nullptr;
    return view;
  }

 private:
  struct Copy {
    std::span<std::byte> host;
    Use use;
    std::size_t shift;
    std::unique_ptr<DeviceBytes> exact;     // of what is read
    std::unique_ptr<GuardedBytes> guarded;  // of what is written
    [[nodiscard]] std::byte* device() const {
      return (exact ? exact->data() : guarded->data()) + shift;
    }
  };

  std::vector<Copy> copies_;
};

template <typename T>
std::span<std::byte> bytes_of(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

/// A batch whose views are all on the device.
inline Batch on_device(const DeviceMirror& mirror, Batch batch) {
  for (TensorView* view :
       {&batch.qo_indptr, &batch.kv_len, &batch.page_table, &batch.kv_page_indptr,
        &batch.kv_page_indices, &batch.kv_last_page_len, &batch.kv_indptr, &batch.tree_mask,
        &batch.full_mask, &batch.full_mask_indptr, &batch.prefix_leaders, &batch.prefix_pages}) {
    *view = mirror.on_device(*view);
  }
  return batch;
}

/// What workspaces hold before they are used.
enum class Rubbish { kPattern, kOnes, kRandom };

/// Both workspaces of an attention, full of rubbish.
class DeviceWorkspaces {
 public:
  DeviceWorkspaces(WorkspaceSizes sizes, const Stream& stream)
      : schedule_(sizes.schedule, stream), scratch_(sizes.scratch, stream) {
    fill_schedule(Rubbish::kPattern, stream);
    fill_scratch(Rubbish::kPattern, stream);
  }

  [[nodiscard]] Workspace schedule() const { return schedule_.get(); }
  [[nodiscard]] Workspace scratch() const { return scratch_.get(); }
  void fill_schedule(Rubbish rubbish, const Stream& stream) { fill(schedule_, rubbish, stream); }
  void fill_scratch(Rubbish rubbish, const Stream& stream) { fill(scratch_, rubbish, stream); }
  [[nodiscard]] bool guards_are_untouched(const Stream& stream) const {
    return schedule_.guards_are_untouched(stream) && scratch_.guards_are_untouched(stream);
  }

 private:
  void fill(const GuardedBytes& bytes, Rubbish rubbish, const Stream& stream) {
    const Workspace workspace = bytes.get();
    if (workspace.empty()) return;
    if (rubbish != Rubbish::kRandom) {
      const int value = rubbish == Rubbish::kOnes ? 0xFF : 0xA5;
      require(cudaMemsetAsync(workspace.data(), value, workspace.size(), stream.get()));
      return;
    }
    std::vector<std::uint32_t> words(workspace.size() / sizeof(std::uint32_t) + 1);
    std::ranges::generate(words, std::ref(random_));
    bytes.upload(std::as_bytes(std::span(words)).first(workspace.size()), stream);
    stream.synchronize();
  }

  GuardedBytes schedule_;
  GuardedBytes scratch_;
  std::mt19937 random_{17};
};

}  // namespace quire::testing
