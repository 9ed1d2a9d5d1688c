// SPDX-License-Identifier: Apache-2.0
// The oracle against cases that can be computed by hand.
#include "quire/reference.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace quire {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// One request, one head of dimension 2, three keys on pages of two, found in the order 1, 0.
/// Keys: (1,0) (0,1) (1,1); values: (1,0) (0,1) (4,4).
class TinyBatch {
 public:
  TinyBatch() {
    spec.num_qo_heads = spec.num_kv_heads = 1;
    spec.head_dim_qk = spec.head_dim_vo = 2;
    spec.q_dtype = spec.kv_dtype = DType::kFloat32;
    spec.page_size = 2;
    spec.sm_scale = 1.0F;
    spec.mask = Mask::kNone;
    batch.qo_indptr = {qo_indptr.data(), DType::kInt32, {2}};
    batch.kv_len = {kv_len.data(), DType::kInt32, {1}};
    batch.page_table = {page_table.data(), DType::kInt32, {1, 2}};
    tensors.q = {q.data(), DType::kFloat32, {1, 1, 2}};
    tensors.k = {k.data(), DType::kFloat32, {2, 2, 1, 2}};
    tensors.v = {v.data(), DType::kFloat32, {2, 2, 1, 2}};
  }

  [[nodiscard]] ReferenceRow row() const {
    return reference_attention_row(spec, batch, tensors, 0, 0, 0);
  }

  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::int32_t> qo_indptr = {0, 1};
  std::vector<std::int32_t> kv_len = {3};
  std::vector<std::int32_t> page_table = {1, 0};
  std::vector<float> q = {1, 2};
  std::vector<float> k = {1, 1, kNan, kNan, 1, 0, 0, 1};
  std::vector<float> v = {4, 4, kNan, kNan, 1, 0, 0, 1};
  AttentionSpec spec;
  Batch batch;
  AttentionTensors tensors;
};

TEST(Reference, IsTheSoftmaxOverTheKeysInTheOrderOfTheTable) {
  const TinyBatch tiny;
  const double weights[3] = {std::exp(1), std::exp(2), std::exp(3)};  // q · k
  const double sum = weights[0] + weights[1] + weights[2];
  const ReferenceRow row = tiny.row();
  EXPECT_NEAR(row.o[0], (weights[0] + 4 * weights[2]) / sum, 1e-14);
  EXPECT_NEAR(row.o[1], (weights[1] + 4 * weights[2]) / sum, 1e-14);
  EXPECT_NEAR(row.lse, std::log(sum), 1e-14);
}

TEST(Reference, TakesTheScaleFromTheHeadDimIfNoneIsGiven) {
  TinyBatch tiny;
  tiny.spec.sm_scale = 0.0F;
  const double s = 1.0 / std::sqrt(2.0);
  EXPECT_NEAR(tiny.row().lse, std::log(std::exp(s) + std::exp(2 * s) + std::exp(3 * s)), 1e-14);
}

TEST(Reference, CountsTheSinkInTheDenominatorOnce) {
  TinyBatch tiny;
  const float sink = 2.5F;
  tiny.spec.sinks = true;
  tiny.tensors.sinks = {&sink, DType::kFloat32, {1}};
  const double sum = std::exp(1) + std::exp(2) + std::exp(3) + std::exp(2.5);
  EXPECT_NEAR(tiny.row().lse, std::log(sum), 1e-14);
  EXPECT_NEAR(tiny.row().o[0], (std::exp(1) + 4 * std::exp(3)) / sum, 1e-14);
}

TEST(Reference, OfARowThatSeesNoKeyIsZeroWithAnLseOfMinusInfinitySinksOrNot) {
  TinyBatch tiny;
  const float sink = 2.5F;
  tiny.spec.sinks = true;
  tiny.tensors.sinks = {&sink, DType::kFloat32, {1}};
  tiny.kv_len[0] = 0;
  EXPECT_EQ(tiny.row().o[0], 0.0);
  EXPECT_EQ(tiny.row().lse, -kInfinity);
}

TEST(Reference, CapsTheLogitsBeforeAlibi) {
  TinyBatch tiny;
  const float slope = 0.5F;
  tiny.spec.logits_soft_cap = 2.0F;
  tiny.spec.alibi = true;
  tiny.tensors.alibi_slopes = {&slope, DType::kFloat32, {1}};
  const double sum = std::exp(2 * std::tanh(0.5) - 1.0) + std::exp(2 * std::tanh(1.0) - 0.5) +
                     std::exp(2 * std::tanh(1.5));
  EXPECT_NEAR(tiny.row().lse, std::log(sum), 1e-14);
}

TEST(Reference, SeesWindowPlusOneKeys) {
  TinyBatch tiny;
  tiny.spec.mask = Mask::kCausal;
  tiny.spec.window_left = 1;
  EXPECT_NEAR(tiny.row().lse, std::log(std::exp(2) + std::exp(3)), 1e-14);
  tiny.spec.window_left = 0;
  EXPECT_NEAR(tiny.row().lse, 3.0, 1e-14);
}

TEST(Reference, AlignsTheCausalMaskToTheEnd) {
  TinyBatch tiny;
  tiny.spec.mask = Mask::kCausal;
  tiny.qo_indptr[1] = 2;
  tiny.q = {1, 2, 1, 2};
  tiny.tensors.q = {tiny.q.data(), DType::kFloat32, {2, 1, 2}};
  EXPECT_NEAR(tiny.row().lse, std::log(std::exp(1) + std::exp(2)), 1e-14);
  EXPECT_NEAR(reference_attention_row(tiny.spec, tiny.batch, tiny.tensors, 0, 1, 0).lse,
              std::log(std::exp(1) + std::exp(2) + std::exp(3)), 1e-14);
}

TEST(Reference, ReadsTreeBitsOverTheNewKeysOnly) {
  TinyBatch tiny;
  tiny.spec.mask = Mask::kTree;
  const std::uint32_t none = 0;
  tiny.batch.tree_mask = {&none, DType::kUInt32, {1, 1}};
  EXPECT_NEAR(tiny.row().lse, std::log(std::exp(1) + std::exp(2)), 1e-14);
  const std::uint32_t own = 1;
  tiny.batch.tree_mask = {&own, DType::kUInt32, {1, 1}};
  EXPECT_NEAR(tiny.row().lse, std::log(std::exp(1) + std::exp(2) + std::exp(3)), 1e-14);
}

TEST(Reference, ReadsFullMaskBitsFromTheLowEndOfAByte) {
  TinyBatch tiny;
  tiny.spec.mask = Mask::kFull;
  const std::uint8_t bits = 0b101;
  const std::int64_t offsets[2] = {0, 1};
  tiny.batch.full_mask = {&bits, DType::kUInt8, {1}};
  tiny.batch.full_mask_indptr = {offsets, DType::kInt64, {2}};
  EXPECT_NEAR(tiny.row().lse, std::log(std::exp(1) + std::exp(3)), 1e-14);
}

TEST(Reference, AppliesTheScalesOfTheCache) {
  TinyBatch tiny;
  const float k_scale = 2.0F;
  const float v_scale = 3.0F;
  tiny.spec.kv_scale = KvScale::kPerTensor;
  tiny.tensors.k_scale = {&k_scale, DType::kFloat32, {1}};
  tiny.tensors.v_scale = {&v_scale, DType::kFloat32, {1}};
  const double sum = std::exp(2) + std::exp(4) + std::exp(6);
  EXPECT_NEAR(tiny.row().lse, std::log(sum), 1e-14);
  EXPECT_NEAR(tiny.row().o[0], 3 * (std::exp(2) + 4 * std::exp(6)) / sum, 1e-14);
}

TEST(Reference, AppliesTheScaleOfEachTokenWhereTheTokenLies) {
  TinyBatch tiny;  // keys lie in tokens 0 and 1 of page 1 and token 0 of page 0
  const std::vector<float> k_scale = {0.5F, TinyBatch::kNan, 2.0F, 3.0F};
  const std::vector<float> v_scale = {10.0F, TinyBatch::kNan, 1.0F, 1.0F};
  tiny.spec.kv_scale = KvScale::kPerToken;
  tiny.tensors.k_scale = {k_scale.data(), DType::kFloat32, {2, 1, 2}};
  tiny.tensors.v_scale = {v_scale.data(), DType::kFloat32, {2, 1, 2}};
  const double sum = std::exp(2.0 * 1) + std::exp(3.0 * 2) + std::exp(0.5 * 3);
  EXPECT_NEAR(tiny.row().lse, std::log(sum), 1e-14);
  EXPECT_NEAR(tiny.row().o[0], (std::exp(2.0) + 40 * std::exp(1.5)) / sum, 1e-14);
}

TEST(Reference, FillsPaddingRowsWithZeroAndMinusInfinity) {
  TinyBatch tiny;
  tiny.q = {1, 2, TinyBatch::kNan, TinyBatch::kNan};
  tiny.tensors.q = {tiny.q.data(), DType::kFloat32, {2, 1, 2}};
  const ReferenceResult result = reference_attention(tiny.spec, tiny.batch, tiny.tensors);
  EXPECT_GT(result.lse[0], 0.0);
  EXPECT_EQ(result.lse[1], -kInfinity);
  EXPECT_EQ(result.o[2], 0.0);
  EXPECT_EQ(result.o[3], 0.0);
}

TEST(Reference, RefusesARequestRowOrHeadThatIsNotThere) {
  const TinyBatch tiny;
  EXPECT_THROW((void)reference_attention_row(tiny.spec, tiny.batch, tiny.tensors, 1, 0, 0), Error);
  EXPECT_THROW((void)reference_attention_row(tiny.spec, tiny.batch, tiny.tensors, 0, 1, 0), Error);
  EXPECT_THROW((void)reference_attention_row(tiny.spec, tiny.batch, tiny.tensors, 0, 0, 1), Error);
}

}  // namespace
}  // namespace quire
