// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace quire::tool {

/// A matrix product by somebody else, as a yardstick.
class Matmul {
 public:
  virtual ~Matmul() = default;
  /// Puts c = a · b on a stream: n × n matrices of bfloat16.
  virtual void multiply(std::byte* c, const std::byte* a, const std::byte* b, std::int32_t n,
                        cudaStream_t stream) = 0;
};

/// @return cuBLAS, loaded now so that nothing needs it to start; null if it is not there.
std::unique_ptr<Matmul> open_matmul();

}  // namespace quire::tool
