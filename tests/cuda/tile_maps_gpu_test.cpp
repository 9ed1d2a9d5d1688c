// SPDX-License-Identifier: Apache-2.0
// Where K and V can be copied in boxes: whoever cannot is served row by row, and nobody is told.
#include "cuda/sm90/tile_maps.hpp"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "support/device_memory.hpp"

namespace quire::cuda::sm90 {
namespace {

constexpr std::int32_t kHeads = 8;
constexpr std::int32_t kHeadDim = 128;
constexpr std::int32_t kPageSize = 16;
constexpr std::int64_t kPages = 10;
constexpr std::int64_t kRow = kHeads * kHeadDim;

class GpuTileMaps : public ::testing::Test {
 protected:
  void SetUp() override {
    quire::testing::require(cudaMalloc(&memory_, 4 * kPages * kPageSize * kRow * 2));
    prepare_tile_maps();
    shape.num_qo_heads = 4 * kHeads;
    shape.num_kv_heads = kHeads;
    shape.group_size = 4;
    shape.head_dim_qk = shape.head_dim_vo = kHeadDim;
    shape.page_size = kPageSize;
    shape.q_dtype = shape.kv_dtype = shape.o_dtype = DType::kBFloat16;
    nhd = {memory_, kPageSize * kRow, kRow, kHeadDim, kPages, kPageSize};
    hnd = {memory_, kPageSize * kRow, kHeadDim, kPageSize * kHeadDim, kPages, kPageSize};
  }
  void TearDown() override { cudaFree(memory_); }

  [[nodiscard]] bool come_in_boxes(const core::Pages& pages) const {
    core::LayerTensors tensors;
    tensors.k = tensors.v = pages;
    tensors.q = {memory_, 4 * kRow, kHeadDim};
    tensors.o = {memory_, 4 * kRow, kHeadDim};
    tensors.total_q = kPageSize;
    constexpr std::int32_t kTileRows = 128;
    return make_tile_maps(shape, tensors, kTileRows).has_kv;
  }

  core::ProblemShape shape;
  core::Pages nhd;
  core::Pages hnd;

 private:
  void* memory_ = nullptr;
};

TEST_F(GpuTileMaps, TakeEitherLayoutAndPagesWithSomethingBetween) {
  EXPECT_TRUE(come_in_boxes(nhd));
  EXPECT_TRUE(come_in_boxes(hnd));
  for (core::Pages pages : {nhd, hnd}) {
    pages.page_stride *= 2;  // K and V of a page behind one another
    EXPECT_TRUE(come_in_boxes(pages));
  }
}

TEST_F(GpuTileMaps, TakeContiguousKeys) {
  shape.page_size = kContiguousKv;
  EXPECT_TRUE(come_in_boxes({nhd.data, 0, kRow, kHeadDim, 1, 1000}));
  EXPECT_TRUE(come_in_boxes({nhd.data, 0, kHeadDim, 1000 * kHeadDim, 1, 1000}));
}

TEST_F(GpuTileMaps, AskForNoStrideOfAnAxisOfOneElement) {
  shape.num_kv_heads = 1;
  shape.num_qo_heads = shape.group_size;
  for (const std::int64_t head_stride : {0, 1, kHeadDim}) {
    EXPECT_TRUE(
        come_in_boxes({nhd.data, kPageSize * kHeadDim, kHeadDim, head_stride, kPages, kPageSize}));
    EXPECT_TRUE(come_in_boxes({nhd.data, 7, kHeadDim, head_stride, 1, kPageSize}));
  }
}

TEST_F(GpuTileMaps, TakeNoPagesThatAreNoMultipleOf16TokensApart) {
  nhd.page_stride += 8;
  EXPECT_FALSE(come_in_boxes(nhd));
  shape.page_size = 17;
  EXPECT_FALSE(come_in_boxes(hnd));
}

}  // namespace
}  // namespace quire::cuda::sm90
