// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "support/merge_parts.hpp"

namespace quire {
namespace {

using testing::ElementBuffer;
using testing::expect_merged;
using testing::Parts;

TEST(MergeStates, JoinsPartsOfEveryDtypeAndSkipsThoseWithoutKeys) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t dim : {8, 72, 128, 600}) {
      const Parts parts(5, 7, 3, dim, dtype);
      ElementBuffer o(DType::kFloat32, 7 * 3 * dim);
      std::vector<float> lse(7 * 3);
      MergeTensors tensors = parts.tensors;
      tensors.o = MutableTensorView(o.at(0), DType::kFloat32, {7, 3, dim});
      tensors.lse = MutableTensorView(lse.data(), DType::kFloat32, {7, 3});
      const Status status = merge_states(Device::cpu(), tensors);
      ASSERT_TRUE(status.ok()) << status.message();
      expect_merged(parts, parts.o, o, lse, 2e-6);
    }
  }
}

TEST(MergeStates, MayWriteOverPartZero) {
  Parts parts(3, 9, 2, 64, DType::kBFloat16);
  const ElementBuffer original = parts.o;
  std::vector<float> lse(9 * 2);
  parts.tensors.o = MutableTensorView(parts.o.at(0), DType::kBFloat16, {9, 2, 64});
  parts.tensors.lse = MutableTensorView(lse.data(), DType::kFloat32, {9, 2});
  const Status status = merge_states(Device::cpu(), parts.tensors);
  ASSERT_TRUE(status.ok()) << status.message();
  expect_merged(parts, original, parts.o, lse, 0.02);
}

TEST(MergeStates, JoinsLargePartsInParallel) {
  const Parts parts(4, 333, 4, 128, DType::kFloat32);
  ElementBuffer o(DType::kFloat32, 333 * 4 * 128);
  std::vector<float> lse(333 * 4);
  MergeTensors tensors = parts.tensors;
  tensors.o = MutableTensorView(o.at(0), DType::kFloat32, {333, 4, 128});
  tensors.lse = MutableTensorView(lse.data(), DType::kFloat32, {333, 4});
  const auto pool = make_thread_pool(3);
  ASSERT_TRUE(merge_states(Device::cpu(), tensors, {}, {.executor = pool.get()}).ok());
  expect_merged(parts, parts.o, o, lse, 2e-6);
}

}  // namespace
}  // namespace quire
