// SPDX-License-Identifier: Apache-2.0
// How 8-bit codes reach the tensor cores, run on the host: values, and the places that fragments
// give them.
#include "cuda/mma/widen.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

namespace quire::cuda::mma {
namespace {

using core::Float8E4M3;
using core::Float8E5M2;
using core::Int8;

float low_of(std::uint32_t pair) {
  return core::float_from_float16(static_cast<std::uint16_t>(pair & 0xffffU));
}
float high_of(std::uint32_t pair) { return low_of(pair >> 16); }

template <typename Kv>
float value_of(std::uint32_t codes, int byte) {
  const auto code = static_cast<std::uint8_t>(codes >> (8 * byte));
  return to_float(std::bit_cast<Kv>(code));
}

template <typename Kv>
class Widening : public testing::Test {};
using Formats = testing::Types<Float8E4M3, Float8E5M2, Int8>;
TYPED_TEST_SUITE(Widening, Formats);

/// −0 is not told from 0: a product with either is the same.
template <typename Kv, Order kOrder>
void expect_values(std::uint32_t codes, const std::array<int, 4>& bytes) {
  const Pairs pairs = Widen<Kv, kOrder>::pairs(codes);
  const std::array<float, 4> got = {low_of(pairs.first), high_of(pairs.first), low_of(pairs.second),
                                    high_of(pairs.second)};
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float expected = value_of<Kv>(codes, bytes[i]);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(got[i])) << std::hex << codes;
    } else {
      EXPECT_EQ(got[i], expected) << std::hex << codes;
    }
  }
}

TYPED_TEST(Widening, EveryCodeIsExactInEveryPlace) {
  std::mt19937 random(4);
  for (std::uint32_t code = 0; code < 256; ++code) {
    for (int byte = 0; byte < 4; ++byte) {
      const auto others = static_cast<std::uint32_t>(random());
      const std::uint32_t codes = (others & ~(0xffU << (8 * byte))) | code << (8 * byte);
      expect_values<TypeParam, Order::kNeighbours>(codes, {0, 1, 2, 3});
      expect_values<TypeParam, Order::kEvenOdd>(codes, {0, 2, 1, 3});
    }
  }
}

/// Where m16n8k16 takes operand B from: lane, register and half of row k and column n.
struct BPlace {
  int lane;
  int reg;
  int half;
};
BPlace b_place(int k, int n) { return {n * 4 + k % 8 / 2, k / 8, k % 2}; }

/// What `ldmatrix` gives a lane of an 8 × 16-byte matrix: four bytes.
struct Matrix {
  std::uint8_t rows[8][16];
};
std::uint32_t load_matrix(const Matrix& m, int lane) {
  std::uint32_t codes = 0;
  for (int i = 0; i < 4; ++i) {
    codes |= static_cast<std::uint32_t>(m.rows[lane / 4][lane % 4 * 4 + i]) << (8 * i);
  }
  return codes;
}
std::uint32_t load_matrix_transposed(const Matrix& m, int lane) {
  const auto& first = m.rows[lane % 4 * 2];
  const auto& second = m.rows[lane % 4 * 2 + 1];
  const int column = lane / 4 * 2;
  return static_cast<std::uint32_t>(first[column]) |
         static_cast<std::uint32_t>(first[column + 1]) << 8 |
         static_cast<std::uint32_t>(second[column]) << 16 |
         static_cast<std::uint32_t>(second[column + 1]) << 24;
}

Matrix numbered(int first) {
  Matrix m{};
  for (int i = 0; i < 128; ++i) m.rows[i / 16][i % 16] = static_cast<std::uint8_t>(first + i);
  return m;
}

TEST(WidenedFragments, ComponentsOfKeysStandWhereQueriesHaveThem) {
  const Matrix keys = numbered(0);  // 8 keys of 16 components
  for (int key = 0; key < 8; ++key) {
    for (int component = 0; component < 16; ++component) {
      const BPlace at = b_place(product_component(component), key);
      const Pairs pairs = Widen<Int8, Order::kNeighbours>::pairs(load_matrix(keys, at.lane));
      const std::uint32_t pair = at.reg == 0 ? pairs.first : pairs.second;
      EXPECT_EQ(at.half == 0 ? low_of(pair) : high_of(pair),
                to_float(Int8{static_cast<std::int8_t>(keys.rows[key][component])}));
    }
  }
}

TEST(WidenedFragments, ProductComponentsAreAPermutation) {
  std::uint32_t seen = 0;
  for (int i = 0; i < 16; ++i) seen |= 1U << product_component(i);
  EXPECT_EQ(seen, 0xffffU);
  for (int i = 0; i < 16; ++i) {  // words stay whole, so that queries are moved by words
    EXPECT_EQ(product_component(i), 2 * word_in_product(i / 2) + i % 2);
  }
}

TEST(WidenedFragments, ColumnsOfValuesAreThoseOfTwoOperands) {
  const std::array<Matrix, 2> values = {numbered(0), numbered(128)};  // 16 keys, 16 columns
  for (int key = 0; key < 16; ++key) {
    for (int column = 0; column < 16; ++column) {
      const BPlace at = b_place(key, column / 2);
      const Pairs pairs = Widen<Int8, Order::kEvenOdd>::pairs(
          load_matrix_transposed(values[static_cast<std::size_t>(at.reg)], at.lane));
      const std::uint32_t pair = column % 2 == 0 ? pairs.first : pairs.second;
      EXPECT_EQ(at.half == 0 ? low_of(pair) : high_of(pair),
                to_float(Int8{static_cast<std::int8_t>(
                    values[static_cast<std::size_t>(key / 8)].rows[key % 8][column])}));
    }
  }
}

}  // namespace
}  // namespace quire::cuda::mma
