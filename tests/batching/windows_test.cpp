// SPDX-License-Identifier: Apache-2.0
// A model with layers of two kinds: those that see everything and those with a window. Each kind has
// a pool and a table of its own; what a window has left goes back and is poisoned.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "quire/attention.hpp"
#include "quire/batch_builder.hpp"
#include "quire/page_table.hpp"

namespace quire {
namespace {

constexpr std::int32_t kHeads = 2;
constexpr std::int32_t kHeadDim = 64;
constexpr std::int32_t kRow = kHeads * kHeadDim;
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

/// The layers of one kind, with keys and values that depend on sequence and position alone.
class Group {
 public:
  /// @param seen  The window of the attention; a table that keeps everything has none of its own.
  Group(std::int32_t num_pages, std::int32_t page_size, std::int32_t window_left, std::int32_t seen)
      : pool_({num_pages, page_size}),
        table_(pool_, {.max_seqs = 4, .max_tokens_per_seq = 300, .window_left = window_left}),
        builder_(table_),
        staging_(1U << 18U),
        k_(static_cast<std::size_t>(num_pages * page_size * kRow), kPoison),
        v_(k_),
        attention_(Device::cpu(), spec_of(page_size, seen),
                   {.max_num_seqs = 4, .max_total_q = 256, .max_kv_len = 300}),
        schedule_(attention_.workspace_sizes().schedule + kWorkspaceAlignment),
        scratch_(attention_.workspace_sizes().scratch + kWorkspaceAlignment) {}

  static AttentionSpec spec_of(std::int32_t page_size, std::int32_t seen) {
    AttentionSpec spec;
    spec.num_qo_heads = spec.num_kv_heads = kHeads;
    spec.head_dim_qk = spec.head_dim_vo = kHeadDim;
    spec.q_dtype = spec.kv_dtype = spec.o_dtype = DType::kFloat32;
    spec.page_size = page_size;
    spec.window_left = seen;
    return spec;
  }

  void begin(int name) { seqs_[name] = table_.create().value(); }
  void end(int name) {
    ASSERT_TRUE(table_.destroy(seqs_.at(name)).ok());
    seqs_.erase(name);
    poison_free_pages();
  }

  /// Appends and writes, then computes. @return The output of all rows.
  std::vector<float> step(const std::map<int, std::int32_t>& new_tokens, bool csr) {
    std::vector<BatchEntry> entries;
    std::vector<float> q;
    for (const auto& [name, n] : new_tokens) {
      const SeqId seq = seqs_.at(name);
      const std::int32_t first = table_.length(seq);
      EXPECT_TRUE(table_.append(seq, n, copies_).ok());
      for (std::int32_t position = first; position < first + n; ++position) {
        const auto row = static_cast<std::size_t>(table_.slot(seq, position) * kRow);
        for (std::size_t i = 0; i < kRow; ++i) {
          k_[row + i] = value(name, position, i, 1);
          v_[row + i] = value(name, position, i, 2);
          q.push_back(value(name, position, i, 3));
        }
      }
      entries.push_back({seq, n});
    }
    const Result<StagedBatch> staged = builder_.build(entries, aligned(staging_));
    EXPECT_TRUE(staged.ok()) << staged.status().message();
    const Batch batch = csr ? staged->csr() : staged->dense();
    const auto rows = static_cast<std::int64_t>(q.size()) / kRow;
    std::vector<float> o(q.size(), kPoison);
    AttentionTensors tensors;
    tensors.q = {q.data(), DType::kFloat32, {rows, kHeads, kHeadDim}};
    tensors.o = {o.data(), DType::kFloat32, {rows, kHeads, kHeadDim}};
    tensors.k = pages(k_);
    tensors.v = pages(v_);
    Status status = attention_.schedule(batch, aligned(schedule_));
    EXPECT_TRUE(status.ok()) << status.message();
    status = attention_.run(batch, tensors, aligned(schedule_), aligned(scratch_));
    EXPECT_TRUE(status.ok()) << status.message();
    for (const auto& [name, n] : new_tokens) {
      EXPECT_TRUE(table_.slide(seqs_.at(name), table_.length(seqs_.at(name))).ok());
    }
    poison_free_pages();
    EXPECT_EQ(table_.check().message(), "");
    return o;
  }

  [[nodiscard]] std::int32_t used() const { return pool_.num_used(); }
  [[nodiscard]] std::int32_t holes(int name) const { return table_.num_holes(seqs_.at(name)); }

 private:
  static float value(int name, std::int32_t position, std::size_t i, std::uint32_t which) {
    std::minstd_rand random(static_cast<std::uint32_t>(name * 1000003 + position * 101) + which +
                            static_cast<std::uint32_t>(i) * 7919U);
    random.discard(3);
    return static_cast<float>(random() % 2001U) / 1000.0F - 1.0F;
  }
  static std::span<std::byte> aligned(std::vector<std::byte>& bytes) {
    void* begin = bytes.data();
    std::size_t size = bytes.size();
    std::align(kWorkspaceAlignment, 1, begin, size);
    return {static_cast<std::byte*>(begin), size};
  }
  MutableTensorView pages(std::vector<float>& cache) {
    const PagePoolSpec& spec = pool_.spec();
    return {cache.data(), DType::kFloat32, {spec.num_pages, spec.page_size, kHeads, kHeadDim}};
  }
  void poison_free_pages() {
    const std::size_t size = static_cast<std::size_t>(pool_.spec().page_size) * kRow;
    for (PageId page = 0; page < pool_.spec().num_pages; ++page) {
      if (pool_.ref_count(page) > 0) continue;
      for (std::vector<float>* cache : {&k_, &v_}) {
        std::fill_n(
            cache->begin() + static_cast<std::ptrdiff_t>(page) * static_cast<std::ptrdiff_t>(size),
            size, kPoison);
      }
    }
  }

  PagePool pool_;
  PageTable table_;
  BatchBuilder builder_;
  std::vector<std::byte> staging_;
  std::vector<float> k_;
  std::vector<float> v_;
  Attention attention_;
  std::vector<std::byte> schedule_;
  std::vector<std::byte> scratch_;
  std::map<int, SeqId> seqs_;
  std::vector<CopyOp> copies_;
};

TEST(Windows, AttentionReadsNoHoleAndNoPageThatWasGivenBack) {
  std::mt19937 random(7);
  const auto up_to = [&random](std::int32_t max) {
    return std::uniform_int_distribution<std::int32_t>(0, max)(random);
  };
  for (const std::int32_t page_size : {1, 4, 16}) {
    for (const std::int32_t window : {0, 5, 33}) {
      Group kept(4 * 300 / page_size + 4, page_size, -1, window);
      Group sliding(4 * 100 / page_size + 8, page_size, window, window);
      std::int32_t longest = 0;
      for (const int name : {0, 1, 2}) {
        kept.begin(name);
        sliding.begin(name);
      }
      for (int step = 0; step < 24; ++step) {
        std::map<int, std::int32_t> tokens;
        for (const int name : {0, 1, 2}) {
          if (up_to(3) > 0) tokens[name] = up_to(2) == 0 ? 1 + up_to(14) : 1;
        }
        const bool csr = up_to(1) == 0;
        const std::vector<float> expected = kept.step(tokens, csr);
        const std::vector<float> got = sliding.step(tokens, csr);
        ASSERT_EQ(expected.size(), got.size());
        for (std::size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(expected[i], got[i], 1e-5)
              << "page size " << page_size << ", window " << window << ", step " << step;
        }
        longest = std::max(longest, sliding.holes(0));
      }
      EXPECT_GT(longest, 0);
      EXPECT_LT(sliding.used(), kept.used());
      for (const int name : {0, 1, 2}) {
        kept.end(name);
        sliding.end(name);
      }
      EXPECT_EQ(sliding.used(), 0);
    }
  }
}

TEST(Windows, ABatchIsRefusedWhoseWindowIsGone) {
  PagePool pool({.num_pages = 8, .page_size = 2});
  PageTable table(pool, {.max_seqs = 1, .max_tokens_per_seq = 20, .window_left = 3});
  BatchBuilder builder(table);
  std::vector<CopyOp> copies;
  const SeqId seq = table.create().value();
  ASSERT_TRUE(table.append(seq, 10, copies).ok());
  ASSERT_TRUE(table.slide(seq, 8).ok());
  EXPECT_TRUE(builder.tight_shape(std::vector<BatchEntry>{{seq, 2}}).ok());
  const Result<BatchShape> refused = builder.tight_shape(std::vector<BatchEntry>{{seq, 5}});
  EXPECT_EQ(refused.status().message(),
            "[batch_builder] entries[0]: expected new tokens whose window is still there, got 5 of "
            "10, 2 pages given back");
}

}  // namespace
}  // namespace quire
