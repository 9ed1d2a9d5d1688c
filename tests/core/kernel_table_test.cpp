// SPDX-License-Identifier: Apache-2.0
#include "core/kernel_table.hpp"

#include <gtest/gtest.h>

#include <set>

#include "quire/info.hpp"

namespace quire {
namespace {

AttentionSpec llama_spec() {
  AttentionSpec spec;
  spec.num_qo_heads = 32;
  spec.num_kv_heads = 8;
  spec.head_dim_qk = 128;
  return spec;
}

TEST(KernelTable, HasARowForTheCpuAndNamesEachRowOnce) {
  std::set<std::string_view> names;
  bool has_cpu = false;
  for (const core::KernelRow& row : core::kernel_table()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    has_cpu = has_cpu || row.device == DeviceType::kCpu;
  }
  EXPECT_TRUE(has_cpu);
}

TEST(Supports, TakesTheCommonSpecAndNamesItsKernel) {
  const Support support = supports(Device::cpu(), llama_spec());
  EXPECT_TRUE(support.supported) << support.reason;
  EXPECT_FALSE(support.kernel.empty());
  EXPECT_TRUE(support.reason.empty());
}

TEST(Supports, TakesEveryHeadDimThatTheTableOffersAndNoOther) {
  for (std::int32_t head_dim = 1; head_dim <= 600; ++head_dim) {
    AttentionSpec spec = llama_spec();
    spec.head_dim_qk = head_dim;
    EXPECT_EQ(supports(Device::cpu(), spec).supported, head_dim % 8 == 0 && head_dim <= 512)
        << head_dim;
  }
}

TEST(Supports, SaysWhatWouldBeNearest) {
  AttentionSpec spec = llama_spec();
  spec.head_dim_qk = spec.head_dim_vo = 100;
  EXPECT_EQ(supports(Device::cpu(), spec).reason,
            "[attention] head_dim_qk: expected a multiple of 8 up to 512 (cpu.portable), got 100; "
            "nearest: 96, 104");
}

TEST(Supports, AgreesWithTheConstructorOnEveryDtypePair) {
  for (int q = 1; q <= static_cast<int>(DType::kUInt32); ++q) {
    for (int kv = 1; kv <= static_cast<int>(DType::kUInt32); ++kv) {
      AttentionSpec spec = llama_spec();
      spec.q_dtype = static_cast<DType>(q);
      spec.kv_dtype = static_cast<DType>(kv);
      const Support support = supports(Device::cpu(), spec);
      try {
        const Attention attention(Device::cpu(), spec, {});
        EXPECT_TRUE(support.supported) << q << " " << kv;
        EXPECT_EQ(attention.kernel(), support.kernel);
      } catch (const Error& error) {
        EXPECT_FALSE(support.supported) << q << " " << kv;
        EXPECT_EQ(error.what(), support.reason);
        EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      }
    }
  }
}

TEST(Info, DescribesEveryRowOfTheTable) {
  const std::vector<KernelInfo> list = kernels();
  ASSERT_EQ(list.size(), core::kernel_table().size());
  for (const KernelInfo& kernel : list) {
    EXPECT_FALSE(kernel.summary.empty());
    EXPECT_FALSE(kernel.q_dtypes.empty());
    EXPECT_FALSE(kernel.masks.empty());
  }
  EXPECT_EQ(devices().front().device, Device::cpu());
}

}  // namespace
}  // namespace quire
