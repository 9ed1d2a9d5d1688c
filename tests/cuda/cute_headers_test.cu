// SPDX-License-Identifier: Apache-2.0
// The CuTe headers are found, compile for every architecture of the build and compute layouts.
#include <cute/tensor.hpp>

#include <gtest/gtest.h>

#include <array>

namespace {

constexpr int kTokens = 4;
constexpr int kHeadDim = 8;

/// One value per element of a page: its token, through a layout.
__global__ void fill_with_tokens(float* page) {
  const auto layout = cute::make_layout(cute::Shape<cute::Int<kTokens>, cute::Int<kHeadDim>>{},
                                        cute::LayoutRight{});
  const auto tensor = cute::make_tensor(cute::make_gmem_ptr(page), layout);
  tensor(static_cast<int>(threadIdx.y), static_cast<int>(threadIdx.x)) =
      static_cast<float>(threadIdx.y);
}

TEST(CuteHeaders, LayOutAPageOnTheHost) {
  std::array<float, kTokens * kHeadDim> page{};
  const auto tensor = cute::make_tensor(
      page.data(), cute::make_layout(cute::make_shape(kTokens, kHeadDim), cute::LayoutRight{}));
  tensor(2, 3) = 1.0F;
  EXPECT_EQ(page[2 * kHeadDim + 3], 1.0F);
}

TEST(CuteHeaders, CompileIntoAKernelOfThisBuild) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, fill_with_tokens);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    GTEST_SKIP() << "no GPU: " << cudaGetErrorString(error);
  }
  EXPECT_EQ(error, cudaSuccess);
  EXPECT_GE(attributes.binaryVersion, 80);
}

}  // namespace
