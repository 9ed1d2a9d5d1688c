// SPDX-License-Identifier: Apache-2.0
// The sentence for each misuse that the host can see. Texts are part of the product: they say what
// was expected, what came, and the nearest choice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "quire/attention.hpp"
#include "quire/info.hpp"

namespace quire {
namespace {

constexpr std::int32_t kPages = 4;
constexpr std::int32_t kPageSize = 16;
constexpr std::int32_t kRows = 5;
constexpr std::int32_t kQoHeads = 4;
constexpr std::int32_t kKvHeads = 2;
constexpr std::int32_t kHeadDim = 8;

/// Names of the CPU's kernels, as texts list them.
std::string cpu_kernels() {
  std::string names;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.device == DeviceType::kCpu) names += (names.empty() ? "" : ", ") + kernel.name;
  }
  return names;
}

/// A correct call of two requests, to be spoilt one way at a time.
struct Call {
  Call() {
    spec.num_qo_heads = kQoHeads;
    spec.num_kv_heads = kKvHeads;
    spec.head_dim_qk = kHeadDim;
    spec.q_dtype = spec.kv_dtype = DType::kFloat32;
    spec.page_size = kPageSize;
    limits = {.max_num_seqs = 2, .max_total_q = kRows, .max_kv_len = 64};
    batch.qo_indptr = {qo_indptr.data(), DType::kInt32, {3}};
    batch.kv_len = {kv_len.data(), DType::kInt32, {2}};
    batch.page_table = {page_table.data(), DType::kInt32, {2, 2}};
    tensors.q = {q.data(), DType::kFloat32, {kRows, kQoHeads, kHeadDim}};
    tensors.k = {k.data(), DType::kFloat32, {kPages, kPageSize, kKvHeads, kHeadDim}};
    tensors.v = {v.data(), DType::kFloat32, {kPages, kPageSize, kKvHeads, kHeadDim}};
    tensors.o = {o.data(), DType::kFloat32, {kRows, kQoHeads, kHeadDim}};
  }

  /// The text of whatever refuses the call first.
  [[nodiscard]] std::string text() {
    try {
      const Attention attention(Device::cpu(), spec, limits, options);
      const WorkspaceSizes sizes = attention.workspace_sizes();
      schedule.resize(sizes.schedule + kWorkspaceAlignment);
      scratch.resize(sizes.scratch + kWorkspaceAlignment);
      const Workspace schedule_bytes = aligned(schedule, sizes.schedule);
      const Workspace scratch_bytes = aligned(scratch, sizes.scratch);
      Status status = attention.schedule(batch, spoil_schedule(schedule_bytes));
      if (status.ok()) {
        status = attention.run(batch, tensors, schedule_bytes, spoil_scratch(scratch_bytes));
      }
      return std::string(status.message());
    } catch (const Error& error) {
      return error.what();
    }
  }

  static Workspace aligned(std::vector<std::byte>& bytes, std::size_t size) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
    return {bytes.data() + (kWorkspaceAlignment - address % kWorkspaceAlignment), size};
  }

  AttentionSpec spec;
  BatchLimits limits;
  AttentionOptions options;
  Batch batch;
  AttentionTensors tensors;
  std::function<Workspace(Workspace)> spoil_schedule = [](Workspace bytes) { return bytes; };
  std::function<Workspace(Workspace)> spoil_scratch = [](Workspace bytes) { return bytes; };

  std::vector<std::int32_t> qo_indptr = {0, 2, 5};
  std::vector<std::int32_t> kv_len = {20, 32};
  std::vector<std::int32_t> page_table = {3, 1, 0, 2};
  std::vector<std::int32_t> groups;
  std::vector<float> q = std::vector<float>(kRows * kQoHeads * kHeadDim, 0.5F);
  std::vector<float> k = std::vector<float>(kPages * kPageSize * kKvHeads * kHeadDim, 0.5F);
  std::vector<float> v = k;
  std::vector<float> o = q;
  std::vector<float> extra = std::vector<float>(64);
  std::vector<std::byte> schedule;
  std::vector<std::byte> scratch;
};

std::string text_after(const std::function<void(Call&)>& spoil) {
  Call call;
  spoil(call);
  return call.text();
}

TEST(ErrorTexts, ThereIsNoneForACorrectCall) {
  Call call;
  EXPECT_EQ(call.text(), "");
}

TEST(ErrorTexts, ThereIsNoneForAnEmptyTableWithoutMemory) {
  EXPECT_EQ(text_after([](Call& c) {
              c.kv_len = {0, 0};
              c.batch.kv_len = {c.kv_len.data(), DType::kInt32, {2}};
              c.batch.page_table = {nullptr, DType::kInt32, {2, 0}};
            }),
            "");
}

TEST(ErrorTexts, OfTheSpec) {
  EXPECT_EQ(text_after([](Call& c) { c.spec.num_kv_heads = 3; }),
            "[attention] num_qo_heads: expected a multiple of num_kv_heads (3), got 4; nearest: 6");
  EXPECT_EQ(text_after([](Call& c) { c.spec.num_kv_heads = 0; }),
            "[attention] num_kv_heads: expected at least 1, got 0");
  EXPECT_EQ(text_after([](Call& c) { c.spec.page_size = -1; }),
            "[attention] page_size: expected at least 0, got -1");
  EXPECT_EQ(text_after([](Call& c) { c.spec.window_left = -2; }),
            "[attention] window_left: expected at least -1, got -2");
  EXPECT_EQ(text_after([](Call& c) { c.spec.logits_soft_cap = -1.0F; }),
            "[attention] logits_soft_cap: expected 0 (off) or more, got -1");
  EXPECT_EQ(text_after([](Call& c) { c.spec.mask = static_cast<Mask>(9); }),
            "[attention] mask: expected an enumerator in [0, 3], got 9");
  EXPECT_EQ(text_after([](Call& c) { c.spec.o_dtype = DType::kBFloat16; }),
            "[attention] o_dtype: expected q_dtype (float32) or float32, got bfloat16");
  EXPECT_EQ(text_after([](Call& c) { c.spec.head_dim_vo = 12; }),
            "[attention] head_dim_vo: expected a multiple of 8 up to 512 (cpu.portable), got 12; "
            "nearest: 8, 16");
  EXPECT_EQ(text_after([](Call& c) { c.options.kernel = "cpu.magic"; }),
            "[attention] kernel: expected one of " + cpu_kernels() + " on cpu, got cpu.magic");
  EXPECT_EQ(text_after([](Call& c) { c.limits.max_total_q = -1; }),
            "[attention] max_total_q: expected at least 0, got -1");
}

TEST(ErrorTexts, OfTheShapesOfABatch) {
  EXPECT_EQ(text_after([](Call& c) { c.batch.qo_indptr = {}; }),
            "[schedule] qo_indptr: expected int32 [≥1], got nothing");
  EXPECT_EQ(text_after([](Call& c) { c.limits.max_num_seqs = 1; }),
            "[schedule] num_seqs: expected at most 1 as BatchLimits says, got 2");
  EXPECT_EQ(text_after([](Call& c) { c.batch.kv_len = {c.kv_len.data(), DType::kInt32, {1}}; }),
            "[schedule] kv_len: expected int32 [2], got int32 [1]");
  EXPECT_EQ(text_after([](Call& c) { c.batch.page_table.dtype = DType::kUInt32; }),
            "[schedule] page_table: expected int32 [2, ≥0], got uint32 [2, 2]");
  EXPECT_EQ(text_after([](Call& c) { c.batch.page_table = {}; }),
            "[schedule] batch: expected one of page_table, kv_page_indptr and kv_indptr, got none");
  EXPECT_EQ(text_after([](Call& c) { c.batch.kv_indptr = c.batch.qo_indptr; }),
            "[schedule] batch: expected one of page_table, kv_page_indptr and kv_indptr, got "
            "several");
  EXPECT_EQ(text_after([](Call& c) { c.spec.page_size = kContiguousKv; }),
            "[schedule] batch: expected kv_indptr for contiguous K/V, got a page table");
  EXPECT_EQ(text_after([](Call& c) { c.spec.mask = Mask::kTree; }),
            "[schedule] tree_mask: expected uint32 [≥0, ≥0], got nothing");
  EXPECT_EQ(text_after([](Call& c) { c.batch.full_mask = {c.extra.data(), DType::kUInt8, {8}}; }),
            "[schedule] full_mask: expected nothing, since the spec does not use it");
}

TEST(ErrorTexts, OfTheShapesOfGroups) {
  const auto text = [](const std::function<void(Call&)>& spoil) {
    return text_after([&](Call& c) {
      c.groups.resize(8, -1);
      c.batch.prefix_leaders = c.batch.prefix_pages = {c.groups.data(), DType::kInt32, {3, 2}};
      spoil(c);
    });
  };
  EXPECT_EQ(text([](Call&) {}), "");
  EXPECT_EQ(text([](Call& c) { c.spec.batch_invariant = true; }), "");
  EXPECT_EQ(text([](Call& c) { c.spec.share_prefixes = false; }),
            "[schedule] prefix_leaders: expected nothing, since share_prefixes of the spec is off");
  EXPECT_EQ(text([](Call& c) {
              c.spec.page_size = kContiguousKv;
              c.batch.kv_indptr = c.batch.qo_indptr;
              c.batch.page_table = {};
            }),
            "[schedule] prefix_leaders: expected nothing, since contiguous K/V have no pages");
  EXPECT_EQ(text([](Call& c) { c.batch.prefix_pages = {}; }),
            "[schedule] prefix_pages: expected int32 [3, 2], got nothing");
  EXPECT_EQ(text([](Call& c) { c.batch.prefix_leaders = {}; }),
            "[schedule] prefix_leaders: expected int32 [≥1, 2], got nothing");
  EXPECT_EQ(text([](Call& c) { c.batch.prefix_pages.shape[0] = 2; }),
            "[schedule] prefix_pages: expected int32 [3, 2], got int32 [2, 2]");
  EXPECT_EQ(text([](Call& c) { c.batch.prefix_leaders.shape[0] = 4; }),
            "[schedule] prefix_leaders: expected at most 3 levels, got 4");
}

TEST(ErrorTexts, OfAnEmptyTreeMask) {
  EXPECT_EQ(text_after([](Call& c) {
              c.spec.mask = Mask::kTree;
              c.batch.tree_mask = {nullptr, DType::kUInt32, {0, 0}};
            }),
            "[schedule] tree_mask: expected uint32 [≥2, ≥1] for the 2 new keys of request 0, got "
            "uint32 [0, 0]");
}

TEST(ErrorTexts, OfTheTensorsOfALayer) {
  EXPECT_EQ(text_after([](Call& c) { c.tensors.q.dtype = DType::kFloat16; }),
            "[attention] q: expected float32 [≥0, 4, 8], got float16 [5, 4, 8]");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.q.shape[0] = kRows + 1; }),
            "[attention] total_q: expected at most 5 as BatchLimits says, got 6");
  EXPECT_EQ(text_after([](Call& c) { c.spec.kv_layout = KvLayout::kHND; }),
            "[attention] k: expected float32 [≥0, 2, 16, 8], got float32 [4, 16, 2, 8]");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.v.shape[0] = 3; }),
            "[attention] v: expected as many pages and tokens as k has");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.o.strides[0] = 8; }),
            "[attention] o: expected strides that give every element its own address");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.o.data = c.q.data(); }),
            "[attention] o: expected memory of its own, got that of an input");
  EXPECT_EQ(text_after([](Call& c) { c.spec.sinks = true; }),
            "[attention] sinks: expected float32 [4], got nothing");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.k_scale = {c.extra.data(), DType::kFloat32, {1}}; }),
            "[attention] k_scale: expected nothing, since the spec does not use it");
  EXPECT_EQ(text_after([](Call& c) {
              c.spec.kv_scale = KvScale::kPerHead;
              c.tensors.k_scale = {c.extra.data(), DType::kFloat32, {1}};
            }),
            "[attention] k_scale: expected float32 [2], got float32 [1]");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.q.device = Device::cuda(); }),
            "[attention] q: expected a tensor on cpu, got one on cuda:0");
}

TEST(ErrorTexts, OfQueriesOfEightBits) {
  const auto with_codes = [](const std::function<void(Call&)>& spoil) {
    return text_after([&](Call& c) {
      c.spec.q_dtype = c.spec.kv_dtype = DType::kFloat8E4M3;
      c.spec.o_dtype = DType::kFloat32;
      for (TensorView* view : {&c.tensors.q, &c.tensors.k, &c.tensors.v}) {
        view->dtype = DType::kFloat8E4M3;
      }
      spoil(c);
    });
  };
  EXPECT_EQ(with_codes([](Call&) {}), "");
  EXPECT_EQ(with_codes([](Call& c) { c.spec.kv_dtype = DType::kBFloat16; }),
            "[attention] kv_dtype: expected float8_e4m3, as q_dtype is, got bfloat16; nearest: "
            "float8_e4m3");
  EXPECT_EQ(with_codes([](Call& c) { c.spec.kv_scale = KvScale::kPerToken; }),
            "[attention] kv_scale: expected none, per tensor or per head for queries of "
            "float8_e4m3, got per token; nearest: per head");
  EXPECT_EQ(with_codes([](Call& c) { c.spec.o_dtype = DType::kFloat8E4M3; }),
            "[attention] o_dtype: expected bfloat16, float16 or float32 for queries of "
            "float8_e4m3, got float8_e4m3");
  EXPECT_EQ(with_codes([](Call& c) { c.spec.o_dtype = DType::kNone; }),
            "[attention] o: expected bfloat16 [5, 4, 8], got float32 [5, 4, 8]");
  EXPECT_EQ(with_codes([](Call& c) { c.tensors.q_scale = {c.extra.data(), DType::kFloat32, {2}}; }),
            "[attention] q_scale: expected float32 [4], got float32 [2]");
  EXPECT_EQ(with_codes([](Call& c) { c.tensors.q_scale = {c.extra.data(), DType::kInt32, {1}}; }),
            "[attention] q_scale: expected float32 [1], got int32 [1]");
  EXPECT_EQ(text_after([](Call& c) { c.tensors.q_scale = {c.extra.data(), DType::kFloat32, {1}}; }),
            "[attention] q_scale: expected nothing, since queries are float32");
  EXPECT_THAT(text_after([](Call& c) {
                c.spec.q_dtype = c.spec.kv_dtype = DType::kFloat8E5M2;
                c.spec.o_dtype = DType::kFloat32;
              }),
              testing::StartsWith("[attention] q_dtype: expected one of "));
}

TEST(ErrorTexts, OfWorkspaces) {
  const auto shorter = [](Workspace bytes) { return bytes.first(3); };
  EXPECT_THAT(text_after([&](Call& c) { c.spoil_schedule = shorter; }),
              testing::MatchesRegex(
                  "\\[schedule\\] schedule workspace: expected at least [0-9]+ bytes, got 3"));
  EXPECT_THAT(text_after([&](Call& c) { c.spoil_scratch = shorter; }),
              testing::MatchesRegex(
                  "\\[attention\\] scratch workspace: expected at least [0-9]+ bytes, got 3"));
  EXPECT_EQ(text_after([](Call& c) {
              c.spoil_schedule = [](Workspace bytes) {
                return Workspace(bytes.data() + 8, bytes.size());
              };
            }),
            "[schedule] schedule workspace: expected memory aligned to 256 bytes, got an address "
            "that is off by 8");
}

struct AppendCall {
  AppendCall() {
    tensors.k = {rows.data(), DType::kFloat32, {3, kKvHeads, kHeadDim}};
    tensors.v = {rows.data(), DType::kFloat32, {3, kKvHeads, kHeadDim}};
    tensors.k_cache = {k.data(), DType::kFloat32, {kPages, kPageSize, kKvHeads, kHeadDim}};
    tensors.v_cache = {v.data(), DType::kFloat32, {kPages, kPageSize, kKvHeads, kHeadDim}};
    tensors.slot_mapping = {slots.data(), DType::kInt64, {3}};
  }

  std::vector<float> rows = std::vector<float>(3 * kKvHeads * kHeadDim, 1.0F);
  std::vector<float> k = std::vector<float>(kPages * kPageSize * kKvHeads * kHeadDim);
  std::vector<float> v = k;
  std::vector<std::int64_t> slots = {0, -1, 63};
  Batch batch;
  AppendTensors tensors;
};

std::string append_text_after(const std::function<void(AppendCall&)>& spoil) {
  AppendCall call;
  spoil(call);
  return std::string(append(Device::cpu(), KvLayout::kNHD, call.batch, call.tensors).message());
}

TEST(ErrorTexts, OfAppend) {
  EXPECT_EQ(append_text_after([](AppendCall&) {}), "");
  EXPECT_EQ(append_text_after([](AppendCall& c) { c.tensors.k.dtype = DType::kInt8; }),
            "[append] k: expected float32 or float16 or bfloat16 [≥0, ≥0, ≥0], got int8 [3, 2, 8]");
  EXPECT_EQ(append_text_after([](AppendCall& c) { c.tensors.v.shape[0] = 2; }),
            "[append] v: expected float32 [3, 2, ≥0], got float32 [2, 2, 8]");
  EXPECT_EQ(append_text_after([](AppendCall& c) { c.tensors.k_cache.shape[2] = 1; }),
            "[append] k_cache: expected float32 or float16 or bfloat16 or int8 or float8_e4m3 or "
            "float8_e5m2 [≥0, ≥1, 2, 8], got float32 [4, 16, 1, 8]");
  EXPECT_EQ(append_text_after([](AppendCall& c) {
              constexpr std::int64_t kTooLarge = std::int64_t{1} << 32;
              c.tensors.k_cache = {nullptr, DType::kFloat32, {0, kTooLarge, kKvHeads, kHeadDim}};
              c.tensors.v_cache = c.tensors.k_cache;
            }),
            "[append] k_cache: expected no axis above 2147483647, got 4294967296");
  EXPECT_EQ(append_text_after([](AppendCall& c) { c.tensors.slot_mapping = {}; }),
            "[append] qo_indptr: expected int32 [≥1], got nothing");
}

TEST(ErrorTexts, OfAppendThatComputesScales) {
  const auto ask = [](AppendCall& c) {
    c.tensors.k_cache.dtype = c.tensors.v_cache.dtype = DType::kInt8;
    c.tensors.k_token_scale = {c.k.data(), DType::kFloat32, {kPages, kKvHeads, kPageSize}};
    c.tensors.v_token_scale = {c.v.data(), DType::kFloat32, {kPages, kKvHeads, kPageSize}};
    c.k.resize(2 * c.k.size());
    c.v.resize(2 * c.v.size());
    c.tensors.k_cache.data = c.k.data() + c.k.size() / 2;
    c.tensors.v_cache.data = c.v.data() + c.v.size() / 2;
    c.tensors.k_token_scale.data = c.k.data();
    c.tensors.v_token_scale.data = c.v.data();
  };
  EXPECT_EQ(append_text_after(ask), "");
  EXPECT_EQ(append_text_after([&](AppendCall& c) {
              ask(c);
              c.tensors.v_token_scale = {};
            }),
            "[append] v_token_scale: expected float32 [4, 2, 16], got nothing");
  EXPECT_EQ(append_text_after([&](AppendCall& c) {
              ask(c);
              c.tensors.k_token_scale.shape[1] = 1;
            }),
            "[append] k_token_scale: expected float32 [4, 2, 16], got float32 [4, 1, 16]");
  EXPECT_EQ(append_text_after([&](AppendCall& c) {
              ask(c);
              c.tensors.v_scale = {c.rows.data(), DType::kFloat32, {1}};
            }),
            "[append] v_scale: expected nothing, since scales per token are computed");
  EXPECT_EQ(append_text_after([&](AppendCall& c) {
              ask(c);
              c.tensors.k_cache.dtype = c.tensors.v_cache.dtype = DType::kFloat16;
            }),
            "[append] k_token_scale: expected nothing, since a float16 cache has no scales per "
            "token");
}

TEST(ErrorTexts, OfMergeStates) {
  std::array<float, 16> data{};
  MergeTensors tensors;
  tensors.o_parts = {data.data(), DType::kFloat32, {2, 1, 1, 4}};
  tensors.lse_parts = {data.data(), DType::kFloat32, {2, 1, 2}};
  tensors.o = {data.data() + 8, DType::kFloat32, {1, 1, 4}};
  EXPECT_EQ(merge_states(Device::cpu(), tensors).message(),
            "[merge_states] lse_parts: expected float32 [2, 1, 1], got float32 [2, 1, 2]");
  tensors.lse_parts = {data.data(), DType::kFloat32, {2, 1, 1}};
  tensors.o = {data.data(), DType::kBFloat16, {1, 1, 4}};
  EXPECT_EQ(merge_states(Device::cpu(), tensors).message(),
            "[merge_states] o: expected the dtype and strides of part 0, whose memory it shares");
}

TEST(ErrorTexts, OfADeviceThatIsNotBuilt) {
  if (supports(Device::cuda(), Call().spec).supported)
    GTEST_SKIP() << "this build has CUDA kernels";
  Call call;
  EXPECT_THROW(Attention(Device::cuda(), call.spec, call.limits), Error);
}

}  // namespace
}  // namespace quire
