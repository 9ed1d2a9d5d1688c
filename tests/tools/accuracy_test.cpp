// SPDX-License-Identifier: Apache-2.0
#include "common/accuracy.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/numbers.hpp"

namespace quire::tool {
namespace {

AttentionSpec spec_of(DType dtype) {
  AttentionSpec spec;
  spec.q_dtype = spec.kv_dtype = spec.o_dtype = dtype;
  return spec;
}

std::vector<double> row_of(std::size_t size) {
  std::vector<double> row;
  for (std::size_t i = 0; i < size; ++i) row.push_back(std::sin(static_cast<double>(i) + 1));
  return row;
}

RowComparison compare(DType dtype, const std::vector<double>& expected,
                      const std::vector<double>& actual, double largest_v) {
  std::vector<std::byte> bytes(actual.size() * size_of(dtype));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    store_float(dtype, static_cast<float>(actual[i]), bytes.data() + i * size_of(dtype));
  }
  return compare_row(spec_of(dtype), expected, bytes.data(), largest_v);
}

TEST(CompareRow, RoundingOfTheOutputIsAllowed) {
  const std::vector<double> row = row_of(128);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    EXPECT_EQ(compare(dtype, row, row, 4).complaint, "") << to_string(dtype);
  }
}

TEST(CompareRow, OneElementOutsideItsBoundIsNamed) {
  const std::vector<double> row = row_of(128);
  std::vector<double> wrong = row;
  wrong[5] += 0.02;
  const RowComparison compared = compare(DType::kBFloat16, row, wrong, 4);
  EXPECT_NEAR(compared.max_error, 0.02, 5e-3);
  EXPECT_NE(compared.complaint.find("element 5: expected -0.279415, got"), std::string::npos)
      << compared.complaint;
}

TEST(CompareRow, OneWrongKeyInALongContextShows) {
  // A thousand keys of equal weight: a wrong one moves every element by less than its own bound.
  std::vector<double> row = row_of(128);
  for (double& value : row) value *= 0.03;
  std::vector<double> wrong = row;
  for (std::size_t i = 0; i < wrong.size(); ++i) wrong[i] += i % 2 == 0 ? 1e-3 : -1e-3;
  EXPECT_NE(compare(DType::kBFloat16, row, wrong, 4).complaint.find("row: expected"),
            std::string::npos);
}

TEST(CompareRow, ANaNIsNeverRight) {
  const std::vector<double> row = row_of(8);
  std::vector<double> wrong = row;
  wrong[3] = std::nan("");
  const RowComparison compared = compare(DType::kFloat32, row, wrong, 4);
  EXPECT_TRUE(std::isinf(compared.max_error));
  EXPECT_NE(compared.complaint, "");
}

TEST(CompareRow, ARowThatSeesNothingMustBeZero) {
  const std::vector<double> zeros(128, 0);
  std::vector<double> wrong = zeros;
  wrong[0] = 1e-3;
  EXPECT_EQ(compare(DType::kBFloat16, zeros, zeros, 4).complaint, "");
  EXPECT_NE(compare(DType::kBFloat16, zeros, wrong, 4).complaint, "");
}

TEST(LseMatches, InfinityOnlyMatchesItself) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const AttentionSpec spec = spec_of(DType::kFloat32);
  EXPECT_TRUE(lse_matches(spec, -kInfinity, -kInfinity));
  EXPECT_FALSE(lse_matches(spec, -kInfinity, -1e30));
  EXPECT_FALSE(lse_matches(spec, 3, kInfinity));
  EXPECT_FALSE(lse_matches(spec, 3, std::nan("")));
  EXPECT_TRUE(lse_matches(spec, 3, 3.00001));
  EXPECT_FALSE(lse_matches(spec, 3, 3.001));
}

TEST(Numbers, NarrowFormatsRoundToNearestEven) {
  std::byte bytes[4];
  const auto there_and_back = [&](DType dtype, float value) {
    store_float(dtype, value, bytes);
    return load_float(dtype, bytes);
  };
  EXPECT_EQ(there_and_back(DType::kBFloat16, 1.00390625F), 1.0F);       // a tie, to even
  EXPECT_EQ(there_and_back(DType::kBFloat16, 1.01171875F), 1.015625F);  // a tie, to even
  EXPECT_EQ(there_and_back(DType::kFloat16, 2049.0F), 2048.0F);
  EXPECT_EQ(there_and_back(DType::kFloat16, -0.333251953125F), -0.333251953125F);
  EXPECT_TRUE(std::isinf(there_and_back(DType::kFloat16, 70000.0F)));
  EXPECT_TRUE(std::isnan(there_and_back(DType::kBFloat16, std::nanf(""))));
  EXPECT_EQ(there_and_back(DType::kFloat32, 0.1F), 0.1F);
}

}  // namespace
}  // namespace quire::tool
