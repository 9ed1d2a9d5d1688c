// SPDX-License-Identifier: Apache-2.0
#include "core/bind.hpp"

#include <fmt/format.h>

#include <limits>
#include <new>

#include "core/expect.hpp"
#include "core/narrow_formats.hpp"

namespace quire::core {
namespace {

constexpr auto kInt32 = SetOf<DType>::of(DType::kInt32);
constexpr auto kInt64 = SetOf<DType>::of(DType::kInt64);
constexpr auto kFloat32 = SetOf<DType>::of(DType::kFloat32);
constexpr auto kFloats = SetOf<DType>::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16);
constexpr auto kCacheDtypes =
    SetOf<DType>::of(DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                     DType::kFloat8E4M3, DType::kFloat8E5M2);

constexpr SetOf<DType> only(DType dtype) { return SetOf<DType>::of(dtype); }

/// Runs checks in order until one fails.
class Checks {
 public:
  Checks(std::string_view operation, Device device) : operation_(operation), device_(device) {}

  [[nodiscard]] bool ok() const { return status_.ok(); }
  [[nodiscard]] Status status() const { return status_; }

  void expect(std::string_view name, const TensorView& tensor, SetOf<DType> dtypes,
              std::initializer_list<Extent> shape) {
    if (ok()) status_ = core::expect(tensor, {operation_, name, dtypes, shape, device_});
  }
  void expect_writable(std::string_view name, const MutableTensorView& tensor, SetOf<DType> dtypes,
                       std::initializer_list<Extent> shape) {
    if (ok()) status_ = core::expect_writable(tensor, {operation_, name, dtypes, shape, device_});
  }
  /// Without a dense axis.
  void expect_scattered(std::string_view name, const TensorView& tensor,
                        std::initializer_list<Extent> shape) {
    if (ok()) status_ = core::expect(tensor, {operation_, name, kFloat32, shape, device_, false});
  }
  void expect_writable_scattered(std::string_view name, const MutableTensorView& tensor,
                                 std::initializer_list<Extent> shape) {
    if (!ok()) return;
    status_ = core::expect_writable(tensor, {operation_, name, kFloat32, shape, device_, false});
  }
  void expect_lse_parts(const TensorView& tensor, std::initializer_list<Extent> shape) {
    if (ok())
      status_ = core::expect(tensor, {operation_, "lse_parts", kFloat32, shape, device_, false});
  }
  void expect_lse(const MutableTensorView& tensor, std::initializer_list<Extent> shape) {
    if (!ok() || !tensor.given()) return;
    status_ = core::expect_writable(tensor, {operation_, "lse", kFloat32, shape, device_, false});
  }
  void refuse(std::string_view name, std::string_view sentence) {
    if (ok()) status_ = invalid(operation_, name, sentence);
  }
  /// A tensor that must be given exactly if `wanted`; checked with the same arguments as `expect`.
  void expect_if(bool wanted, std::string_view name, const TensorView& tensor, SetOf<DType> dtypes,
                 std::initializer_list<Extent> shape) {
    if (wanted) {
      expect(name, tensor, dtypes, shape);
    } else if (tensor.given()) {
      refuse(name, "expected nothing, since the spec does not use it");
    }
  }

 private:
  std::string_view operation_;
  Device device_;
  Status status_;
};

/// Stands for the data of empty tensors, so that null always means "not given". Never read.
constexpr std::int64_t kNoElements = 0;

template <typename T>
const T* data_of(const TensorView& tensor) {
  if (!tensor.given()) return nullptr;
  return static_cast<const T*>(tensor.data != nullptr ? tensor.data : &kNoElements);
}

template <typename Void>
RowsOf<Void> rows_of(const BasicTensorView<Void>& tensor) {
  return {tensor.data, tensor.stride(0), tensor.stride(1)};
}

template <typename Void>
PagesOf<Void> pages_of(const BasicTensorView<Void>& tensor, KvLayout layout) {
  const bool heads_first = layout == KvLayout::kHND;
  if (tensor.rank == 3) {  // contiguous: one page that holds every row
    const std::int32_t token_axis = heads_first ? 1 : 0;
    return {tensor.data,
            0,
            tensor.stride(token_axis),
            tensor.stride(1 - token_axis),
            1,
            tensor.size(token_axis)};
  }
  const std::int32_t token_axis = heads_first ? 2 : 1;
  return {tensor.data,
          tensor.stride(0),
          tensor.stride(token_axis),
          tensor.stride(3 - token_axis),
          tensor.size(0),
          tensor.size(token_axis)};
}

void expect_cache(Checks& checks, std::string_view name, const TensorView& tensor,
                  const AttentionSpec& spec, std::int32_t head_dim) {
  const Extent heads = exactly(spec.num_kv_heads);
  const Extent dim = exactly(head_dim);
  const bool heads_first = spec.kv_layout == KvLayout::kHND;
  if (spec.page_size == kContiguousKv) {
    if (heads_first) {
      checks.expect(name, tensor, only(spec.kv_dtype), {heads, any_extent(), dim});
    } else {
      checks.expect(name, tensor, only(spec.kv_dtype), {any_extent(), heads, dim});
    }
  } else if (heads_first) {
    checks.expect(name, tensor, only(spec.kv_dtype),
                  {any_extent(), heads, exactly(spec.page_size), dim});
  } else {
    checks.expect(name, tensor, only(spec.kv_dtype),
                  {any_extent(), exactly(spec.page_size), heads, dim});
  }
}

/// @param cache  Checked before: K or V that the scale is of.
void expect_scale(Checks& checks, std::string_view name, const TensorView& scale,
                  const AttentionSpec& spec, const TensorView& cache) {
  if (spec.kv_scale == KvScale::kPerToken && checks.ok()) {
    const bool heads_first = spec.kv_layout == KvLayout::kHND;
    if (spec.page_size == kContiguousKv) {
      checks.expect_scattered(
          name, scale, {exactly(spec.num_kv_heads), exactly(cache.size(heads_first ? 1 : 0))});
    } else {
      checks.expect_scattered(
          name, scale,
          {exactly(cache.size(0)), exactly(spec.num_kv_heads), exactly(spec.page_size)});
    }
    return;
  }
  const std::int32_t count = spec.kv_scale == KvScale::kPerHead ? spec.num_kv_heads : 1;
  checks.expect_if(spec.kv_scale != KvScale::kNone, name, scale, kFloat32, {exactly(count)});
}

/// One number or one for each head, if queries are codes; the spec does not say which.
void expect_query_scale(Checks& checks, const AttentionSpec& spec, const TensorView& scale) {
  if (!scale.given() || !checks.ok()) return;
  if (!is_narrow(spec.q_dtype)) {
    checks.refuse("q_scale",
                  fmt::format("expected nothing, since queries are {}", to_string(spec.q_dtype)));
    return;
  }
  const bool is_one = scale.rank == 1 && scale.size(0) == 1;
  checks.expect("q_scale", scale, kFloat32, {exactly(is_one ? 1 : spec.num_qo_heads)});
}

/// [page, head, token], or [head, token] of contiguous K/V.
template <typename Float, typename Void>
TokenScalesOf<Float> token_scales_of(const BasicTensorView<Void>& scale) {
  if (!scale.given()) return {};
  const std::int32_t heads = scale.rank - 2;
  const void* data = scale.data != nullptr ? scale.data : &kNoElements;
  return {static_cast<Float*>(const_cast<void*>(data)), heads == 0 ? 0 : scale.stride(0),
          scale.stride(heads), scale.stride(heads + 1)};
}

/// Which of the ways to find keys is given, and only it.
void expect_key_source(Checks& checks, const AttentionSpec& spec, const Batch& batch,
                       std::int64_t num_seqs) {
  const int given = static_cast<int>(batch.page_table.given()) +
                    static_cast<int>(batch.kv_page_indptr.given()) +
                    static_cast<int>(batch.kv_indptr.given());
  if (given != 1) {
    checks.refuse("batch", given == 0 ? "expected one of page_table, kv_page_indptr and kv_indptr, "
                                        "got none"
                                      : "expected one of page_table, kv_page_indptr and kv_indptr, "
                                        "got several");
    return;
  }
  if (batch.kv_indptr.given() != (spec.page_size == kContiguousKv)) {
    checks.refuse("batch", spec.page_size == kContiguousKv
                               ? "expected kv_indptr for contiguous K/V, got a page table"
                               : "expected page_table or kv_page_indptr for paged K/V, got "
                                 "kv_indptr");
    return;
  }
  if (batch.page_table.given()) {
    checks.expect("page_table", batch.page_table, kInt32, {exactly(num_seqs), any_extent()});
    checks.expect("kv_len", batch.kv_len, kInt32, {exactly(num_seqs)});
  } else if (batch.kv_page_indptr.given()) {
    checks.expect("kv_page_indptr", batch.kv_page_indptr, kInt32, {exactly(num_seqs + 1)});
    checks.expect("kv_page_indices", batch.kv_page_indices, kInt32, {any_extent()});
    if (!batch.kv_len.given()) {
      checks.expect("kv_last_page_len", batch.kv_last_page_len, kInt32, {exactly(num_seqs)});
    }
  } else {
    checks.expect("kv_indptr", batch.kv_indptr, kInt32, {exactly(num_seqs + 1)});
  }
  if (batch.kv_len.given()) checks.expect("kv_len", batch.kv_len, kInt32, {exactly(num_seqs)});
}

void expect_masks(Checks& checks, const AttentionSpec& spec, const Batch& batch,
                  std::int64_t num_seqs) {
  checks.expect_if(spec.mask == Mask::kTree, "tree_mask", batch.tree_mask, only(DType::kUInt32),
                   {any_extent(), any_extent()});
  checks.expect_if(spec.mask == Mask::kFull, "full_mask", batch.full_mask, only(DType::kUInt8),
                   {any_extent()});
  checks.expect_if(spec.mask == Mask::kFull, "full_mask_indptr", batch.full_mask_indptr, kInt64,
                   {exactly(num_seqs + 1)});
}

/// Copies pointers and strides; everything was checked.
void fill_batch(const Batch& batch, std::int64_t num_seqs, BatchArrays& out) {
  out = {};
  out.num_seqs = static_cast<std::int32_t>(num_seqs);
  out.qo_indptr = data_of<std::int32_t>(batch.qo_indptr);
  out.kv_len = data_of<std::int32_t>(batch.kv_len);
  out.page_table = data_of<std::int32_t>(batch.page_table);
  if (batch.page_table.given()) {
    out.page_table_stride = batch.page_table.stride(0);
    out.page_table_width = batch.page_table.size(1);
  }
  out.kv_page_indptr = data_of<std::int32_t>(batch.kv_page_indptr);
  out.kv_page_indices = data_of<std::int32_t>(batch.kv_page_indices);
  if (batch.kv_page_indices.given()) out.num_page_indices = batch.kv_page_indices.size(0);
  out.kv_last_page_len = data_of<std::int32_t>(batch.kv_last_page_len);
  out.kv_indptr = data_of<std::int32_t>(batch.kv_indptr);
  out.tree_mask = data_of<std::uint32_t>(batch.tree_mask);
  if (batch.tree_mask.given()) {
    out.tree_mask_stride = batch.tree_mask.stride(0);
    out.tree_mask_words = batch.tree_mask.size(1);
    out.tree_mask_rows = batch.tree_mask.size(0);
  }
  out.full_mask = data_of<std::uint8_t>(batch.full_mask);
  if (batch.full_mask.given()) out.full_mask_bytes = batch.full_mask.size(0);
  out.full_mask_indptr = data_of<std::int64_t>(batch.full_mask_indptr);
}

Status too_long(std::string_view operation, std::string_view name, std::int64_t limit,
                std::int64_t got) {
  return {ErrorCode::kTooLong,
          fmt::format("[{}] {}: expected at most {} as BatchLimits says, got {}", operation, name,
                      limit, got)};
}

/// Runs `body`, which may allocate for a failure's text, inside noexcept functions.
template <typename Body>
Status guarded(Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, {}};
  }
}

Status check_batch(std::string_view operation, const AttentionConfig& config, const Batch& batch,
                   BatchArrays& out) {
  Checks checks(operation, config.device);
  checks.expect("qo_indptr", batch.qo_indptr, kInt32, {at_least(1)});
  if (!checks.ok()) return checks.status();
  const std::int64_t num_seqs = batch.qo_indptr.size(0) - 1;
  if (num_seqs > config.limits.max_num_seqs) {
    return too_long(operation, "num_seqs", config.limits.max_num_seqs, num_seqs);
  }
  expect_key_source(checks, config.spec, batch, num_seqs);
  expect_masks(checks, config.spec, batch, num_seqs);
  if (checks.ok()) fill_batch(batch, num_seqs, out);
  return checks.status();
}

Status check_groups(std::string_view operation, const AttentionConfig& config, const Batch& batch,
                    PrefixGroups& out) {
  out = {};
  const TensorView& leaders = batch.prefix_leaders;
  const TensorView& pages = batch.prefix_pages;
  if (!leaders.given() && !pages.given()) return {};
  Checks checks(operation, config.device);
  const std::string_view first = leaders.given() ? "prefix_leaders" : "prefix_pages";
  if (!config.spec.share_prefixes) {
    checks.refuse(first, "expected nothing, since share_prefixes of the spec is off");
  } else if (config.spec.page_size == kContiguousKv) {
    checks.refuse(first, "expected nothing, since contiguous K/V have no pages");
  }
  const Extent num_seqs = exactly(batch.qo_indptr.size(0) - 1);
  checks.expect("prefix_leaders", leaders, kInt32, {at_least(1), num_seqs});
  if (!checks.ok()) return checks.status();
  if (leaders.size(0) > kMaxPrefixLevels) {
    checks.refuse("prefix_leaders", fmt::format("expected at most {} levels, got {}",
                                                kMaxPrefixLevels, leaders.size(0)));
  }
  checks.expect("prefix_pages", pages, kInt32, {exactly(leaders.size(0)), num_seqs});
  if (!checks.ok()) return checks.status();
  out.num_levels = static_cast<std::int32_t>(leaders.size(0));
  out.leaders = data_of<std::int32_t>(leaders);
  out.leaders_stride = leaders.stride(0);
  out.pages = data_of<std::int32_t>(pages);
  out.pages_stride = pages.stride(0);
  return {};
}

Status check_layer(const AttentionConfig& config, const AttentionTensors& tensors,
                   LayerTensors& out) {
  const AttentionSpec& spec = config.spec;
  Checks checks("attention", config.device);
  const Extent qo_heads = exactly(spec.num_qo_heads);
  checks.expect("q", tensors.q, only(spec.q_dtype),
                {any_extent(), qo_heads, exactly(spec.head_dim_qk)});
  if (!checks.ok()) return checks.status();
  const std::int64_t total_q = tensors.q.size(0);
  if (total_q > config.limits.max_total_q) {
    return too_long("attention", "total_q", config.limits.max_total_q, total_q);
  }
  expect_cache(checks, "k", tensors.k, spec, spec.head_dim_qk);
  expect_cache(checks, "v", tensors.v, spec, spec.head_dim_vo);
  checks.expect_writable("o", tensors.o, only(spec.o_dtype),
                         {exactly(total_q), qo_heads, exactly(spec.head_dim_vo)});
  checks.expect_lse(tensors.lse, {exactly(total_q), qo_heads});
  expect_query_scale(checks, spec, tensors.q_scale);
  expect_scale(checks, "k_scale", tensors.k_scale, spec, tensors.k);
  expect_scale(checks, "v_scale", tensors.v_scale, spec, tensors.v);
  checks.expect_if(spec.sinks, "sinks", tensors.sinks, kFloat32, {qo_heads});
  checks.expect_if(spec.alibi, "alibi_slopes", tensors.alibi_slopes, kFloat32, {qo_heads});
  if (!checks.ok()) return checks.status();

  out = {};
  out.total_q = total_q;
  out.q = rows_of(tensors.q);
  out.k = pages_of(tensors.k, spec.kv_layout);
  out.v = pages_of(tensors.v, spec.kv_layout);
  out.o = rows_of(tensors.o);
  if (out.k.num_pages != out.v.num_pages || out.k.num_tokens != out.v.num_tokens) {
    checks.refuse("v", "expected as many pages and tokens as k has");
  }
  const bool has_rows = total_q > 0;
  if (has_rows &&
      (out.o.data == out.q.data || out.o.data == out.k.data || out.o.data == out.v.data)) {
    checks.refuse("o", "expected memory of its own, got that of an input");
  }
  if (tensors.lse.given()) {
    out.lse = static_cast<float*>(tensors.lse.data);
    out.lse_token_stride = tensors.lse.stride(0);
    out.lse_head_stride = tensors.lse.stride(1);
  }
  if (spec.kv_scale == KvScale::kPerToken) {
    out.k_token_scale = token_scales_of<const float>(tensors.k_scale);
    out.v_token_scale = token_scales_of<const float>(tensors.v_scale);
  } else {
    out.k_scale = data_of<float>(tensors.k_scale);
    out.v_scale = data_of<float>(tensors.v_scale);
  }
  out.q_scale = data_of<float>(tensors.q_scale);
  out.q_scale_head_stride = tensors.q_scale.given() && tensors.q_scale.size(0) > 1 ? 1 : 0;
  out.scale_head_stride = spec.kv_scale == KvScale::kPerHead ? 1 : 0;
  out.sinks = data_of<float>(tensors.sinks);
  out.alibi_slopes = data_of<float>(tensors.alibi_slopes);
  return checks.status();
}

/// Sizes that kernels count in 32 bits.
void expect_int32(Checks& checks, std::string_view name, std::int64_t size) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  if (checks.ok() && size > kLargest) {
    checks.refuse(name, fmt::format("expected no axis above {}, got {}", kLargest, size));
  }
}

void expect_append_scale(Checks& checks, std::string_view name, const TensorView& scale,
                         std::int64_t num_kv_heads) {
  if (!scale.given()) return;
  const bool one = scale.rank == 1 && scale.size(0) == 1;
  checks.expect(name, scale, kFloat32, {exactly(one ? 1 : num_kv_heads)});
}

/// Scales that are computed: of both k and v, or of neither. Checked after the caches.
void expect_token_scales(Checks& checks, const AppendTensors& tensors, std::int64_t num_kv_heads,
                         std::int64_t page_size) {
  if (!tensors.k_token_scale.given() && !tensors.v_token_scale.given()) return;
  if (tensors.k_scale.given() || tensors.v_scale.given()) {
    checks.refuse(tensors.k_scale.given() ? "k_scale" : "v_scale",
                  "expected nothing, since scales per token are computed");
  }
  if (!is_narrow(tensors.k_cache.dtype)) {
    checks.refuse("k_token_scale",
                  fmt::format("expected nothing, since a {} cache has no scales per token",
                              to_string(tensors.k_cache.dtype)));
  }
  const Extent pages = exactly(tensors.k_cache.size(0));
  const Extent heads = exactly(num_kv_heads);
  const Extent tokens = exactly(page_size);
  checks.expect_writable_scattered("k_token_scale", tensors.k_token_scale, {pages, heads, tokens});
  checks.expect_writable_scattered("v_token_scale", tensors.v_token_scale, {pages, heads, tokens});
}

Status check_append(Device device, KvLayout layout, const Batch& batch,
                    const AppendTensors& tensors, BatchArrays& batch_out, AppendArrays& out) {
  Checks checks("append", device);
  checks.expect("k", tensors.k, kFloats, {any_extent(), any_extent(), any_extent()});
  if (!checks.ok()) return checks.status();
  const std::int64_t rows = tensors.k.size(0);
  const std::int64_t heads = tensors.k.size(1);
  checks.expect("v", tensors.v, only(tensors.k.dtype),
                {exactly(rows), exactly(heads), any_extent()});
  const SetOf<DType> cache_dtypes = kCacheDtypes;
  const bool heads_first = layout == KvLayout::kHND;
  const auto expect_pages = [&](std::string_view name, const MutableTensorView& cache,
                                SetOf<DType> dtypes, Extent pages, Extent tokens,
                                std::int64_t head_dim) {
    if (heads_first) {
      checks.expect_writable(name, cache, dtypes,
                             {pages, exactly(heads), tokens, exactly(head_dim)});
    } else {
      checks.expect_writable(name, cache, dtypes,
                             {pages, tokens, exactly(heads), exactly(head_dim)});
    }
  };
  expect_pages("k_cache", tensors.k_cache, cache_dtypes, any_extent(), at_least(1),
               tensors.k.size(2));
  if (!checks.ok()) return checks.status();
  const std::int64_t page_size = tensors.k_cache.size(heads_first ? 2 : 1);
  expect_int32(checks, "k_cache", page_size);
  expect_int32(checks, "k", heads);
  expect_int32(checks, "k", tensors.k.size(2));
  expect_int32(checks, "v", tensors.v.rank == 3 ? tensors.v.size(2) : 0);
  expect_pages("v_cache", tensors.v_cache, only(tensors.k_cache.dtype),
               exactly(tensors.k_cache.size(0)), exactly(page_size), tensors.v.size(2));
  expect_append_scale(checks, "k_scale", tensors.k_scale, heads);
  expect_append_scale(checks, "v_scale", tensors.v_scale, heads);
  expect_token_scales(checks, tensors, heads, page_size);
  batch_out = {};
  if (tensors.slot_mapping.given()) {
    checks.expect("slot_mapping", tensors.slot_mapping, kInt64, {exactly(rows)});
  } else {
    checks.expect("qo_indptr", batch.qo_indptr, kInt32, {at_least(1)});
    if (!checks.ok()) return checks.status();
    const std::int64_t num_seqs = batch.qo_indptr.size(0) - 1;
    AttentionSpec paged;
    paged.page_size = static_cast<std::int32_t>(page_size);
    expect_key_source(checks, paged, batch, num_seqs);
    if (checks.ok()) fill_batch(batch, num_seqs, batch_out);
  }
  if (!checks.ok()) return checks.status();

  out = {};
  out.num_rows = rows;
  out.num_kv_heads = static_cast<std::int32_t>(heads);
  out.head_dim_qk = static_cast<std::int32_t>(tensors.k.size(2));
  out.head_dim_vo = static_cast<std::int32_t>(tensors.v.size(2));
  out.page_size = static_cast<std::int32_t>(page_size);
  out.new_dtype = tensors.k.dtype;
  out.cache_dtype = tensors.k_cache.dtype;
  out.k = rows_of(tensors.k);
  out.v = rows_of(tensors.v);
  out.k_cache = pages_of(tensors.k_cache, layout);
  out.v_cache = pages_of(tensors.v_cache, layout);
  out.slot_mapping = data_of<std::int64_t>(tensors.slot_mapping);
  out.k_scale = data_of<float>(tensors.k_scale);
  out.v_scale = data_of<float>(tensors.v_scale);
  out.k_scale_head_stride = tensors.k_scale.given() && tensors.k_scale.size(0) > 1 ? 1 : 0;
  out.v_scale_head_stride = tensors.v_scale.given() && tensors.v_scale.size(0) > 1 ? 1 : 0;
  out.k_token_scale = token_scales_of<float>(tensors.k_token_scale);
  out.v_token_scale = token_scales_of<float>(tensors.v_token_scale);
  return {};
}

/// True if each element of o lies where the same element of part 0 does.
bool in_place(const MergeTensors& tensors) {
  bool same = tensors.o.dtype == tensors.o_parts.dtype;
  for (std::int32_t axis = 0; axis < 3; ++axis) {
    same = same && (tensors.o.size(axis) <= 1 ||
                    tensors.o.stride(axis) == tensors.o_parts.stride(axis + 1));
  }
  return same;
}

Status check_merge(Device device, const MergeTensors& tensors, MergeArrays& out) {
  Checks checks("merge_states", device);
  checks.expect("o_parts", tensors.o_parts, kFloats,
                {at_least(1), any_extent(), any_extent(), any_extent()});
  if (!checks.ok()) return checks.status();
  const Extent parts = exactly(tensors.o_parts.size(0));
  const Extent rows = exactly(tensors.o_parts.size(1));
  const Extent heads = exactly(tensors.o_parts.size(2));
  const Extent dim = exactly(tensors.o_parts.size(3));
  checks.expect_lse_parts(tensors.lse_parts, {parts, rows, heads});
  checks.expect_writable("o", tensors.o, kFloats, {rows, heads, dim});
  checks.expect_lse(tensors.lse, {rows, heads});
  expect_int32(checks, "o_parts", heads.value);
  expect_int32(checks, "o_parts", dim.value);
  if (checks.ok() && tensors.o.data == tensors.o_parts.data && !in_place(tensors)) {
    checks.refuse("o", "expected the dtype and strides of part 0, whose memory it shares");
  }
  if (!checks.ok()) return checks.status();

  out = {};
  out.num_parts = parts.value;
  out.num_rows = rows.value;
  out.num_heads = static_cast<std::int32_t>(heads.value);
  out.head_dim = static_cast<std::int32_t>(dim.value);
  out.part_dtype = tensors.o_parts.dtype;
  out.o_dtype = tensors.o.dtype;
  out.o_parts = tensors.o_parts.data;
  out.o_part_stride = tensors.o_parts.stride(0);
  out.o_part_token_stride = tensors.o_parts.stride(1);
  out.o_part_head_stride = tensors.o_parts.stride(2);
  out.lse_parts = data_of<float>(tensors.lse_parts);
  out.lse_part_stride = tensors.lse_parts.stride(0);
  out.lse_part_token_stride = tensors.lse_parts.stride(1);
  out.lse_part_head_stride = tensors.lse_parts.stride(2);
  out.o = rows_of(tensors.o);
  if (tensors.lse.given()) {
    out.lse = static_cast<float*>(tensors.lse.data);
    out.lse_token_stride = tensors.lse.stride(0);
    out.lse_head_stride = tensors.lse.stride(1);
  }
  return {};
}

}  // namespace

Status bind_batch(std::string_view operation, const AttentionConfig& config, const Batch& batch,
                  BatchArrays& out) noexcept {
  return guarded([&] { return check_batch(operation, config, batch, out); });
}

Status bind_groups(std::string_view operation, const AttentionConfig& config, const Batch& batch,
                   PrefixGroups& out) noexcept {
  return guarded([&] { return check_groups(operation, config, batch, out); });
}

Status bind_layer(const AttentionConfig& config, const AttentionTensors& tensors,
                  LayerTensors& out) noexcept {
  return guarded([&] { return check_layer(config, tensors, out); });
}

Status bind_append(Device device, KvLayout layout, const Batch& batch, const AppendTensors& tensors,
                   BatchArrays& batch_out, AppendArrays& out) noexcept {
  return guarded([&] { return check_append(device, layout, batch, tensors, batch_out, out); });
}

Status bind_merge(Device device, const MergeTensors& tensors, MergeArrays& out) noexcept {
  return guarded([&] { return check_merge(device, tensors, out); });
}

Status check_workspace(std::string_view operation, std::string_view name, Workspace workspace,
                       std::size_t needed) noexcept {
  return guarded([&]() -> Status {
    if (workspace.size() < needed) {
      return {ErrorCode::kWorkspaceTooSmall,
              fmt::format("[{}] {}: expected at least {} bytes, got {}", operation, name, needed,
                          workspace.size())};
    }
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
    if (needed > 0 && (workspace.data() == nullptr || address % kWorkspaceAlignment != 0)) {
      return {ErrorCode::kWorkspaceTooSmall,
              fmt::format("[{}] {}: expected memory aligned to {} bytes, got an address that is "
                          "{}",
                          operation, name, kWorkspaceAlignment,
                          workspace.data() == nullptr
                              ? std::string("null")
                              : fmt::format("off by {}", address % kWorkspaceAlignment))};
    }
    return {};
  });
}

}  // namespace quire::core
