// SPDX-License-Identifier: Apache-2.0
#include "common/noise.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "common/numbers.hpp"

namespace quire::tool {
namespace {

constexpr std::size_t kCount = 100000;

std::vector<float> values(DType dtype, std::uint64_t key) {
  const Noise noise(dtype, 1);
  std::vector<std::byte> bytes(kCount * size_of(dtype));
  noise.fill(bytes.data(), kCount, key);
  std::vector<float> out;
  for (std::size_t i = 0; i < kCount; ++i) {
    out.push_back(load_float(dtype, bytes.data() + i * size_of(dtype)));
  }
  return out;
}

TEST(Noise, IsNormal) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const double largest = 1.01 * Noise(dtype, 1).largest();  // rounding may raise it a little
    double sum = 0;
    double squares = 0;
    for (const double value : values(dtype, 5)) {
      ASSERT_TRUE(std::isfinite(value));
      ASSERT_LE(std::fabs(value), largest);
      sum += value;
      squares += value * value;
    }
    EXPECT_NEAR(sum / kCount, 0, 0.03) << to_string(dtype);
    EXPECT_NEAR(squares / kCount, 1, 0.03) << to_string(dtype);
  }
}

TEST(Noise, TheSameKeyGivesTheSameValues) {
  EXPECT_EQ(values(DType::kBFloat16, 5), values(DType::kBFloat16, 5));
  EXPECT_NE(values(DType::kBFloat16, 5), values(DType::kBFloat16, 6));
}

TEST(Noise, KeysTellRequestsLayersTensorsAndPositionsApart) {
  const std::uint64_t key = noise_key(1, 1, NoiseTensor::kK, 1);
  EXPECT_NE(key, noise_key(2, 1, NoiseTensor::kK, 1));
  EXPECT_NE(key, noise_key(1, 2, NoiseTensor::kK, 1));
  EXPECT_NE(key, noise_key(1, 1, NoiseTensor::kV, 1));
  EXPECT_NE(key, noise_key(1, 1, NoiseTensor::kK, 2));
}

TEST(Noise, Int8SpansItsRangeAndSaysItsScale) {
  const Noise noise(DType::kInt8, 1);
  std::vector<std::int8_t> out(kCount);
  noise.fill(out.data(), kCount, 1);
  double squares = 0;
  for (const double value : out) squares += value * noise.scale() * value * noise.scale();
  EXPECT_NEAR(squares / kCount, 1, 0.03);
}

}  // namespace
}  // namespace quire::tool
