// SPDX-License-Identifier: Apache-2.0
#include "cpu/visibility.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace quire::cpu {
namespace {

/// Which keys a query sees, one by one, as attention.hpp says it.
bool sees(const MaskOfRequest& mask, std::int64_t query, std::int64_t key) {
  const std::int64_t position = mask.lengths.kv_len - mask.lengths.qo_len + query;
  if (mask.shape.window_left >= 0 && key < position - mask.shape.window_left) return false;
  const std::int64_t new_key = key - (mask.lengths.kv_len - mask.lengths.qo_len);
  switch (mask.shape.mask) {
    case Mask::kNone:
      return true;
    case Mask::kCausal:
      return key <= position;
    case Mask::kTree: {
      if (new_key < 0) return true;
      const std::uint32_t* row =
          mask.batch.tree_mask + (mask.first_row + query) * mask.batch.tree_mask_stride;
      return ((row[new_key / 32] >> (new_key % 32)) & 1U) != 0;
    }
    case Mask::kFull: {
      const std::int64_t bit = query * mask.lengths.kv_len + key;
      return ((mask.full_mask[bit / 8] >> (bit % 8)) & 1) != 0;
    }
  }
  return false;
}

TEST(Visibility, OfEveryTileIsWhatTheMaskSaysKeyByKey) {
  std::mt19937 random(7);
  const auto below = [&](int n) {
    return static_cast<std::int32_t>(random() % static_cast<unsigned>(n));
  };
  for (int round = 0; round < 3000; ++round) {
    core::ProblemShape shape;
    shape.page_size = 16;
    shape.mask = static_cast<Mask>(below(4));
    shape.window_left = below(2) == 0 ? -1 : below(90);
    const std::vector<std::int32_t> indptr = {0, 3, 3 + 1 + below(70)};
    const std::int32_t qo_len = indptr[2] - indptr[1];
    const std::vector<std::int32_t> lengths = {5, 1 + below(200)};
    std::vector<std::uint32_t> tree(static_cast<std::size_t>(indptr[2]) * 4);
    for (std::uint32_t& word : tree) word = static_cast<std::uint32_t>(random());
    std::vector<std::uint8_t> full(static_cast<std::size_t>(qo_len * lengths[1] + 7) / 8 + 2);
    for (std::uint8_t& byte : full) byte = static_cast<std::uint8_t>(random());
    const std::vector<std::int64_t> full_indptr = {0, 2, static_cast<std::int64_t>(full.size())};

    core::BatchArrays batch;
    batch.num_seqs = 2;
    batch.qo_indptr = indptr.data();
    batch.kv_len = lengths.data();
    batch.tree_mask = tree.data();
    batch.tree_mask_stride = 4;
    batch.full_mask = full.data();
    batch.full_mask_indptr = full_indptr.data();
    const MaskOfRequest mask =
        mask_of_request(shape, batch, 1, schedule::lengths_of(shape, batch, 1));
    const std::int32_t query = below(qo_len);
    const std::int32_t key = below(lengths[1]);
    const std::int32_t count = std::min(1 + below(64), lengths[1] - key);
    std::uint64_t expected = 0;
    for (std::int32_t i = 0; i < count; ++i) {
      expected |= static_cast<std::uint64_t>(sees(mask, query, key + i)) << i;
    }
    ASSERT_EQ(visibility(mask, query, key, count), expected)
        << "mask " << static_cast<int>(shape.mask) << " window " << shape.window_left << " query "
        << query << " of " << qo_len << " keys " << key << "+" << count << " of " << lengths[1];
  }
}

TEST(Visibility, ReadsNoWordBeyondTheBitsItNeeds) {
  const std::vector<std::uint8_t> bytes = {0xff, 0x0f};  // a sanitizer watches their end
  EXPECT_EQ(extract_bits(bytes.data(), 4, 8), 0xffU);
  EXPECT_EQ(extract_bits(bytes.data(), 4, 12), 0x0ffU);
}

}  // namespace
}  // namespace quire::cpu
