// SPDX-License-Identifier: Apache-2.0
// A build without CUDA: there is no GPU, and whoever asks for one is told why.
#include "common/exit_code.hpp"
#include "device/place.hpp"

namespace quire::tool {

std::unique_ptr<Gpu> open_gpu(Device /*device*/) {
  throw CommandError(ExitCode::kNoDevice,
                     "--device cuda: expected a build with CUDA, got one without; configure with "
                     "-DQUIRE_CUDA=ON");
}

}  // namespace quire::tool
