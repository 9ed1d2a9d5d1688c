// SPDX-License-Identifier: Apache-2.0
// What a profiler is told, with a GPU or without: the test is the tool that NVTX finds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nvtx3/nvToolsExt.h>

#include <string>
#include <vector>

#include "core/backend.hpp"

namespace quire {
namespace {

std::vector<std::string>& heard() {
  static std::vector<std::string> texts;
  return texts;
}

nvtxDomainHandle_t NVTX_API create_domain(const char* name) {
  heard().emplace_back(name);
  return reinterpret_cast<nvtxDomainHandle_t>(&heard());
}
int NVTX_API push(nvtxDomainHandle_t /*domain*/, const nvtxEventAttributes_t* attributes) {
  heard().emplace_back(attributes->message.ascii);
  return 0;
}
int NVTX_API pop(nvtxDomainHandle_t /*domain*/) {
  heard().emplace_back("end");
  return 0;
}

/// Puts our functions into NVTX's table.
int NVTX_API attach(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks =
      static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  *table[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(&create_domain);
  *table[NVTX_CBID_CORE2_DomainRangePushEx] = reinterpret_cast<NvtxFunctionPointer>(&push);
  *table[NVTX_CBID_CORE2_DomainRangePop] = reinterpret_cast<NvtxFunctionPointer>(&pop);
  return 1;
}

TEST(Nvtx, CallsAreRangesOfOurDomain) {
  InitializeInjectionNvtx2_fnptr = &attach;  // which the first call looks at
  constexpr Device kNoSuchDevice = Device::cuda(1000);
  EXPECT_FALSE(cuda::append(kNoSuchDevice, {}, {}, {}).ok());
  EXPECT_FALSE(cuda::merge_states(kNoSuchDevice, {}, {}).ok());
  EXPECT_THAT(heard(), testing::ElementsAre("quire", "append", "end", "merge_states", "end"));
}

}  // namespace
}  // namespace quire
