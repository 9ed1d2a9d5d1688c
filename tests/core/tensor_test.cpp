// SPDX-License-Identifier: Apache-2.0
#include "quire/tensor.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "core/expect.hpp"

namespace quire {
namespace {

constexpr auto kFloat = core::SetOf<DType>::of(DType::kFloat32);

std::string text_of(const TensorView& tensor, std::initializer_list<core::Extent> shape,
                    core::SetOf<DType> dtypes = kFloat) {
  return std::string(core::expect(tensor, {"op", "x", dtypes, shape, Device::cpu()}).message());
}

TEST(TensorView, IsPackedRowMajorByDefault) {
  float data[24] = {};
  const TensorView view(data, DType::kFloat32, {2, 3, 4});
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.stride(1), 4);
  EXPECT_EQ(view.stride(2), 1);
}

TEST(TensorView, OfNothingIsNotGivenButAnEmptyTensorIs) {
  EXPECT_FALSE(TensorView().given());
  EXPECT_TRUE(TensorView(nullptr, DType::kFloat32, {0, 4}).given());
}

TEST(Expect, TakesAnyStrideOfAnAxisOfOne) {
  float data[4] = {};
  EXPECT_EQ(text_of(TensorView(data, DType::kFloat32, {1, 4}, {-77, 1}),
                    {core::exactly(1), core::exactly(4)}),
            "");
}

TEST(Expect, NamesDtypeAndShapeThatWereWantedAndCame) {
  std::int64_t data[128] = {};
  EXPECT_EQ(text_of(TensorView(data, DType::kInt64, {8, 16}),
                    {core::exactly(8), core::at_least(17)}, core::SetOf<DType>::of(DType::kInt32)),
            "[op] x: expected int32 [8, ≥17], got int64 [8, 16]");
}

TEST(Expect, NamesEachOtherFault) {
  alignas(8) std::byte bytes[64] = {};
  EXPECT_EQ(text_of({}, {core::exactly(1)}), "[op] x: expected float32 [1], got nothing");
  EXPECT_EQ(text_of(TensorView(nullptr, DType::kFloat32, {4}), {core::exactly(4)}),
            "[op] x: expected float32 [4] in memory, got a null pointer");
  EXPECT_EQ(text_of(TensorView(bytes + 1, DType::kFloat32, {4}), {core::exactly(4)}),
            "[op] x: expected an address aligned to 4 bytes, got one that is off by 1");
  EXPECT_EQ(text_of(TensorView(bytes, DType::kFloat32, {4}, {2}), {core::exactly(4)}),
            "[op] x: expected stride 1 along the last axis, got 2");
  EXPECT_EQ(text_of(TensorView(bytes, DType::kFloat32, {4}, Device::cuda(1)), {core::exactly(4)}),
            "[op] x: expected a tensor on cpu, got one on cuda:1");
  EXPECT_EQ(text_of(TensorView(bytes, DType::kFloat32, {-4}), {core::any_extent()}),
            "[op] x: expected float32 [≥0], got float32 [-4]");
}

TEST(Expect, RefusesToWriteThroughStridesThatOverlap) {
  float data[64] = {};
  const core::Expected expected{"op", "o", kFloat, {core::exactly(4), core::exactly(8)}, {}};
  EXPECT_TRUE(core::expect_writable({data, DType::kFloat32, {4, 8}, {16, 1}}, expected).ok());
  EXPECT_TRUE(core::expect_writable({data, DType::kFloat32, {4, 8}, {8, 1}}, expected).ok());
  EXPECT_EQ(core::expect_writable({data, DType::kFloat32, {4, 8}, {7, 1}}, expected).message(),
            "[op] o: expected strides that give every element its own address");
  EXPECT_FALSE(core::expect_writable({data, DType::kFloat32, {4, 8}, {0, 1}}, expected).ok());
}

TEST(DType, HasASizeAndANameForEveryValue) {
  for (int dtype = 1; dtype <= static_cast<int>(DType::kUInt32); ++dtype) {
    EXPECT_GT(size_of(static_cast<DType>(dtype)), 0U) << dtype;
    EXPECT_NE(to_string(static_cast<DType>(dtype)), "unknown") << dtype;
  }
  EXPECT_EQ(size_of(static_cast<DType>(99)), 0U);
}

}  // namespace
}  // namespace quire
