// SPDX-License-Identifier: Apache-2.0
// A build that did not find cuBLAS' header.
#include "device/matmul.hpp"

namespace quire::tool {

std::unique_ptr<Matmul> open_matmul() { return nullptr; }

}  // namespace quire::tool
