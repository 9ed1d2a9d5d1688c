// SPDX-License-Identifier: Apache-2.0
/// @file
/// Partial results to be joined, and what joining them must give. Used by the tests of every
/// backend.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "support/random_batch.hpp"

namespace quire::testing {

inline constexpr float kNoKey = -std::numeric_limits<float>::infinity();

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
inline void expect_merged(const Parts& parts, const ElementBuffer& original, const ElementBuffer& o,
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

}  // namespace quire::testing
