// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "common/noise_block.hpp"
#include "device/mirror.hpp"
#include "tools/played_gpu.hpp"

namespace quire::tool {
namespace {

TEST(Mirror, OnTheCpuTensorsAreThemselves) {
  const std::unique_ptr<Place> place = open_place(Device::cpu());
  Mirror mirror(*place);
  std::array<std::int32_t, 4> host = {1, 2, 3, 4};
  const MutableTensorView view{host.data(), DType::kInt32, {4}};
  EXPECT_EQ(mirror.of(view).data, host.data());
  mirror.download(view);
  EXPECT_THAT(host, testing::ElementsAre(1, 2, 3, 4));
}

TEST(Mirror, OnAGpuTheSameMemoryIsCopiedOnceAndComesBack) {
  PlayedGpu gpu(Device::cuda(2));
  Mirror mirror(gpu);
  std::array<std::int32_t, 6> host = {1, 2, 3, 4, 5, 6};
  const MutableTensorView view{host.data(), DType::kInt32, {2, 2}, {4, 1}};  // to the last element
  const MutableTensorView copy = mirror.of(view);
  EXPECT_NE(copy.data, host.data());
  EXPECT_EQ(copy.device, Device::cuda(2));
  EXPECT_EQ(copy.stride(0), 4);
  EXPECT_EQ(std::memcmp(copy.data, host.data(), sizeof host), 0);
  EXPECT_EQ(mirror.of(TensorView(view)).data, copy.data);
  static_cast<std::int32_t*>(copy.data)[5] = 60;
  EXPECT_EQ(host[5], 6);
  mirror.download(view);
  EXPECT_EQ(host[5], 60);
  EXPECT_FALSE(mirror.of(TensorView()).given());
}

TEST(Mirror, TakesEveryTensorOfABatch) {
  PlayedGpu gpu(Device::cuda());
  Mirror mirror(gpu);
  const std::array<std::int64_t, 2> bytes = {0, 0};
  const TensorView view{bytes.data(), DType::kInt64, {2}};
  const Batch batch = mirror.of(Batch{view, view, view, view, view, view, view, view, view, view});
  for (const TensorView& each :
       {batch.qo_indptr, batch.kv_len, batch.page_table, batch.kv_page_indptr,
        batch.kv_page_indices, batch.kv_last_page_len, batch.kv_indptr, batch.tree_mask,
        batch.full_mask, batch.full_mask_indptr}) {
    EXPECT_EQ(each.device, Device::cuda());
  }
}

TEST(SharedBytes, GoUpAndComeBack) {
  for (const Device device : {Device::cpu(), Device::cuda()}) {
    PlayedGpu gpu(device);
    const SharedBytes bytes(gpu, 2);
    EXPECT_EQ(bytes.host() == bytes.device(), device == Device::cpu());
    bytes.host()[0] = std::byte{7};
    bytes.push(1);
    EXPECT_EQ(bytes.device()[0], std::byte{7});
    bytes.device()[1] = std::byte{8};
    bytes.pull(2);
    EXPECT_EQ(bytes.host()[1], std::byte{8});
  }
}

TEST(NoiseBlock, TellsWhatItWrote) {
  constexpr std::size_t kCount = 33'554'393 + 1000;  // more than a block
  const std::unique_ptr<Place> place = open_place(Device::cpu());
  const NoiseBlock block(Noise(DType::kInt8, 1), kCount, 0);
  const DeviceMemory memory(*place, kCount);
  block.fill(*place, memory);
  for (const std::size_t first : {std::size_t{0}, kCount - 2000, kCount - 500}) {
    std::vector<std::byte> told(500);
    block.tell(first, told);
    EXPECT_EQ(std::memcmp(told.data(), memory.data() + first, told.size()), 0) << first;
  }
}

}  // namespace
}  // namespace quire::tool
