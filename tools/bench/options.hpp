// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/arrays.hpp"
#include "bench/embedded.hpp"

namespace quire::tool {

struct BenchOptions {
  Device device;
  MeasureOptions measure;
  std::vector<std::string> workloads;
  std::string commit{kBuildCommit};
  std::string output;
  std::int32_t scale = 0;
  std::int32_t threads = 0;
  PageKind pages = PageKind::kHuge;
  bool all = false;
  bool list = false;
  bool json = false;
};

}  // namespace quire::tool
