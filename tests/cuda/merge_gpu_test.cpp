// SPDX-License-Identifier: Apache-2.0
// Partial results joined on the GPU.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "support/device_memory.hpp"
#include "support/merge_parts.hpp"

namespace quire {
namespace {

using testing::DeviceMirror;
using testing::ElementBuffer;
using testing::expect_merged;
using testing::kGpu;
using testing::Parts;
using testing::Stream;

/// Room for a result, NaN to begin with.
struct Merged {
  Merged(const Parts& parts, DType dtype)
      : o(dtype, parts.rows * parts.heads * parts.dim),
        lse(static_cast<std::size_t>(parts.rows * parts.heads), std::nanf("")) {}
  ElementBuffer o;
  std::vector<float> lse;
};

/// Joins the parts on the GPU and brings the result back.
void merge(Parts& parts, Merged& merged, bool with_lse = true) {
  const Stream stream;
  DeviceMirror mirror;
  mirror.add(parts.o.bytes(), DeviceMirror::Use::kRead, stream);
  mirror.add(testing::bytes_of(parts.lse), DeviceMirror::Use::kRead, stream);
  mirror.add(merged.o.bytes(), DeviceMirror::Use::kWritten, stream);
  mirror.add(testing::bytes_of(merged.lse), DeviceMirror::Use::kWritten, stream);
  MergeTensors tensors;
  tensors.o_parts = mirror.on_device(parts.tensors.o_parts);
  tensors.lse_parts = mirror.on_device(parts.tensors.lse_parts);
  tensors.o = mirror.on_device(
      MutableTensorView(merged.o.at(0), merged.o.dtype(), {parts.rows, parts.heads, parts.dim}));
  if (with_lse) {
    tensors.lse = mirror.on_device(
        MutableTensorView(merged.lse.data(), DType::kFloat32, {parts.rows, parts.heads}));
  }
  const Status status = merge_states(kGpu, tensors, {.stream = stream.get(), .check = nullptr});
  ASSERT_TRUE(status.ok()) << status.message();
  mirror.download(stream);
  EXPECT_TRUE(mirror.guards_are_untouched(stream));
}

TEST(GpuMergeStates, JoinsPartsOfEveryDtypeAndSkipsThoseWithoutKeys) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t dim : {1, 7, 8, 72, 128, 600}) {
      Parts parts(5, 7, 3, dim, dtype);
      Merged merged(parts, DType::kFloat32);
      merge(parts, merged);
      expect_merged(parts, parts.o, merged.o, merged.lse, 2e-6);
    }
  }
}

TEST(GpuMergeStates, RoundsToTheOutputDtype) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    Parts parts(3, 9, 2, 64, DType::kFloat32);
    Merged merged(parts, dtype);
    merge(parts, merged);
    constexpr double kLargest = 5.0;  // of some thousand normal numbers
    expect_merged(parts, parts.o, merged.o, merged.lse, kLargest * testing::rounding_of(dtype));
  }
}

TEST(GpuMergeStates, OfOnePartIsThatPart) {
  Parts parts(1, 9, 2, 64, DType::kFloat16);
  Merged merged(parts, DType::kFloat16);
  merge(parts, merged);
  expect_merged(parts, parts.o, merged.o, merged.lse, 0.0);
}

TEST(GpuMergeStates, JoinsManyPartsOfManyRows) {
  Parts parts(70, 333, 4, 128, DType::kFloat32);
  Merged merged(parts, DType::kFloat32);
  merge(parts, merged);
  expect_merged(parts, parts.o, merged.o, merged.lse, 2e-6);
}

TEST(GpuMergeStates, NeedsNoRoomForTheLse) {
  Parts parts(4, 33, 4, 128, DType::kBFloat16);
  Merged merged(parts, DType::kFloat32);
  merge(parts, merged, false);
  Merged with_lse(parts, DType::kFloat32);
  merge(parts, with_lse);
  expect_merged(parts, parts.o, merged.o, with_lse.lse, 2e-6);
}

TEST(GpuMergeStates, MayWriteOverPartZero) {
  Parts parts(3, 9, 2, 64, DType::kBFloat16);
  const ElementBuffer original = parts.o;
  const Stream stream;
  DeviceMirror mirror;
  std::vector<float> lse(9 * 2);
  mirror.add(parts.o.bytes(), DeviceMirror::Use::kWritten, stream);
  mirror.add(testing::bytes_of(parts.lse), DeviceMirror::Use::kRead, stream);
  mirror.add(testing::bytes_of(lse), DeviceMirror::Use::kWritten, stream);
  MergeTensors tensors;
  tensors.o_parts = mirror.on_device(parts.tensors.o_parts);
  tensors.lse_parts = mirror.on_device(parts.tensors.lse_parts);
  tensors.o =
      mirror.on_device(MutableTensorView(parts.o.at(0), DType::kBFloat16, {9, 2, parts.dim}));
  tensors.lse = mirror.on_device(MutableTensorView(lse.data(), DType::kFloat32, {9, 2}));
  const Status status = merge_states(kGpu, tensors, {.stream = stream.get(), .check = nullptr});
  ASSERT_TRUE(status.ok()) << status.message();
  mirror.download(stream);
  expect_merged(parts, original, parts.o, lse, 0.02);
}

}  // namespace
}  // namespace quire
