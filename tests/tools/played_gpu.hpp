// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device/place.hpp"
#include "quire/attention.hpp"

namespace quire::tool {

/// A GPU that the CPU plays: its memory is the host's, a graph is a function, and every launch
/// takes 5 microseconds.
class PlayedGpu final : public Gpu {
 public:
  /// @param device  What it says it is. Calls of the library need the CPU.
  explicit PlayedGpu(Device device = Device::cpu()) : device_(device) {}

  [[nodiscard]] Device device() const override { return device_; }
  [[nodiscard]] void* stream() const override { return nullptr; }
  [[nodiscard]] std::string name() const override { return "a CPU that plays"; }
  [[nodiscard]] std::size_t free_bytes() const override { return 0; }
  [[nodiscard]] std::byte* allocate(std::size_t bytes) override {
    constexpr std::size_t kUnit = kWorkspaceAlignment;
    void* const data = std::aligned_alloc(kUnit, (bytes + kUnit) / kUnit * kUnit);
    return static_cast<std::byte*>(data);
  }
  void release(std::byte* data) noexcept override { std::free(data); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memmove(to, from, bytes);  // of nothing, pointers may be null
  }
  void fill(void* to, int byte, std::size_t bytes) override { std::memset(to, byte, bytes); }
  void synchronize() override {}

  struct PlayedGraph final : Graph {
    std::function<void()> body;
  };
  [[nodiscard]] std::unique_ptr<Graph> capture(const std::function<void()>& body) override {
    auto graph = std::make_unique<PlayedGraph>();
    graph->body = body;
    return graph;
  }
  void launch(Graph& graph) override { static_cast<PlayedGraph&>(graph).body(); }
  [[nodiscard]] std::vector<double> time(Graph& graph, std::int32_t repetitions,
                                         const std::function<void()>& before) override {
    before();
    launch(graph);
    return std::vector<double>(static_cast<std::size_t>(repetitions), 5.0);
  }
  void do_nothing() override {}
  void read(const std::byte*, std::size_t) override {}
  bool multiply(std::byte*, const std::byte*, const std::byte*, std::int32_t) override {
    return multiplies;
  }

  bool multiplies = true;  ///< Whether there is a library for it.

 private:
  Device device_;
};

}  // namespace quire::tool
