// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "support/random_batch.hpp"

namespace quire {
namespace {

using testing::ElementBuffer;

constexpr float kNoKey = -std::numeric_limits<float>::infinity();

/// Parts with random results; some saw no key and hold NaN.
struct Parts {
  Parts(std::int64_t num_parts, std::int64_t num_rows, std::int64_t num_heads,
        std::int64_t head_dim, DType dtype)
      : parts(num_parts),
        rows(num_rows),
        heads(num_heads),
        dim(head_dim),
        o(dtype, num_parts * num_rows * num_heads * head_dim),
        lse(static_cast<std::size_t>(num_parts * num_rows * num_heads)) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < lse.size(); ++i) {
      const bool empty = random() % 4 == 0;
      lse[i] = empty ? kNoKey : 10.0F * normal(random);
      for (std::int64_t j = 0; !empty && j < dim; ++j) {
        o.set(static_cast<std::int64_t>(i) * dim + j, normal(random));
      }
    }
    tensors.o_parts = TensorView(o.at(0), dtype, {parts, rows, heads, dim});
    tensors.lse_parts = TensorView(lse.data(), DType::kFloat32, {parts, rows, heads});
  }

  std::int64_t parts, rows, heads, dim;
  ElementBuffer o;
  std::vector<float> lse;
  MergeTensors tensors;
};

/// Expects element by element what the formula gives.
void expect_merged(const Parts& parts, const ElementBuffer& original, const ElementBuffer& o,
                   const std::vector<float>& lse, double bound) {
  const std::int64_t rows = parts.rows * parts.heads;
  for (std::int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    std::vector<double> want(static_cast<std::size_t>(parts.dim), 0.0);
    for (std::int64_t part = 0; part < parts.parts; ++part) {
      const double weight = std::exp(parts.lse[static_cast<std::size_t>(part * rows + row)]);
      if (weight == 0.0) continue;
      sum += weight;
      for (std::int64_t i = 0; i < parts.dim; ++i) {
        want[static_cast<std::size_t>(i)] +=
            weight * original.get((part * rows + row) * parts.dim + i);
      }
    }
    if (sum == 0.0) {
      EXPECT_EQ(lse[static_cast<std::size_t>(row)], kNoKey);
    } else {
      EXPECT_NEAR(lse[static_cast<std::size_t>(row)], std::log(sum), 1e-5);
    }
    for (std::int64_t i = 0; i < parts.dim; ++i) {
      const double value = sum == 0.0 ? 0.0 : want[static_cast<std::size_t>(i)] / sum;
      ASSERT_NEAR(o.get(row * parts.dim + i), value, bound) << "row " << row;
    }
  }
}

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
