// SPDX-License-Identifier: Apache-2.0
/// @file
/// Random ragged batches with poison in everything that must not be read: pages that nobody owns,
/// tokens beyond a request's keys or before its window, table entries beyond or before them, the
/// gaps of strided tensors. Used by the tests of every backend.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "quire/attention.hpp"
#include "quire/reference.hpp"
#include "support/element_buffer.hpp"
#include "support/named_groups.hpp"

namespace quire::testing {

/// One request of a batch.
struct Request {
  std::int32_t qo_len = 0;
  std::int32_t kv_len = 0;
};

/// Lengths around the edges of tiles (64), of pages and of few and many rows.
inline std::vector<Request> edgy_requests() {
  return {{1, 1},  {1, 63},  {1, 64},  {1, 65}, {0, 0}, {1, 130}, {5, 5},    {3, 17},
          {0, 40}, {16, 16}, {7, 200}, {9, 3},  {2, 0}, {70, 70}, {33, 129}, {1, 16}};
}

/// How a batch tells where keys are.
enum class KeySource {
  kDense,         ///< `page_table` and `kv_len`
  kCsr,           ///< `kv_page_indptr`, `kv_page_indices`, `kv_last_page_len`
  kCsrWithKvLen,  ///< the same with `kv_len`, and more pages than needed
  kContiguous,    ///< `kv_indptr`
};

/// How K and V lie in memory.
enum class CacheStorage {
  kApart,           ///< two packed tensors
  kTwoPages,        ///< [2, pages, …]
  kPagesTwo,        ///< [pages, 2, …]
  kPagesLayersTwo,  ///< [pages, layers, 2, …], the second of three layers
  kPackedDims,      ///< […, D + Dv]
  kGaps,            ///< as kTwoPages, with 16 bytes of something else behind each page
};

struct RandomBatchOptions {
  AttentionSpec spec;
  std::vector<Request> requests;
  KeySource source = KeySource::kDense;
  CacheStorage storage = CacheStorage::kApart;
  bool fused_qkv = false;         ///< q is a slice of [total_q, heads of q, k and v]
  bool strided_output = false;    ///< gaps between the rows of o and of lse
  std::int32_t padding_rows = 0;  ///< rows of q beyond the last request
  std::int32_t stale_pages = 2;  ///< table entries beyond what is needed, where the source has them
  std::int32_t shared_pages = 0;  ///< pages that the tables of all requests begin with
  std::int32_t branch_pages = 0;  ///< and that those of a branch go on with
  std::int32_t num_branches = 1;  ///< to which requests belong in turn
  double mask_density = 0.5;      ///< of tree and full masks
  std::int64_t pool_pages = 0;    ///< pages of the pool; 0: half as many again as are needed
  std::int32_t table_width = 0;   ///< table entries per request; 0: what the longest needs
  /// NaN in the values of some keys that only some queries see. Those queries get NaN, no others.
  bool poison_masked_values = false;
  int query_scales = 0;    ///< 1: one for all heads; 2: one for each
  float magnitude = 1.0F;  ///< standard deviation of q, k and v; int8 steps count 1/32
  /// Scales of V per token lie up to as many powers of two above and below 1.
  int value_scale_powers = 0;
  std::int32_t token_scale_gap = 0;  ///< floats between the scales per token of two heads
  /// Most tables begin as another's does, for a random number of pages.
  bool page_forest = false;
  /// Groups of requests that share prefixes are given, those with queries.
  bool named_prefixes = false;
  std::uint32_t seed = 1;
};

/// A batch of `edgy_requests()` with some padding.
inline RandomBatchOptions edgy_options(DType dtype, std::int32_t group, std::int32_t kv_heads,
                                       std::int32_t head_dim) {
  RandomBatchOptions options;
  options.spec.num_kv_heads = kv_heads;
  options.spec.num_qo_heads = kv_heads * group;
  options.spec.head_dim_qk = head_dim;
  options.spec.q_dtype = options.spec.kv_dtype = dtype;
  options.requests = edgy_requests();
  options.padding_rows = 3;
  return options;
}

/// A batch and all the memory it refers to. Neither copied nor moved: views point into it.
class RandomBatch {
 public:
  /// Page id of table entries that must not be followed.
  static constexpr std::int32_t kStaleId = std::numeric_limits<std::int32_t>::max() - 7;
  /// Stride of an axis of size 1.
  static constexpr std::int64_t kMeaningless = 0x123456789abcdefLL;

  explicit RandomBatch(const RandomBatchOptions& batch_options)
      : options(batch_options),
        spec(batch_options.spec),
        random_(batch_options.seed),
        places_(batch_options.seed) {
    if (spec.head_dim_vo == 0) spec.head_dim_vo = spec.head_dim_qk;
    if (spec.o_dtype == DType::kNone) {
      spec.o_dtype = size_of(spec.q_dtype) == 1 ? DType::kBFloat16 : spec.q_dtype;
    }
    if (options.source == KeySource::kContiguous) spec.page_size = kContiguousKv;
    make_lengths();
    make_tables();
    if (options.named_prefixes) name_prefixes();
    make_cache();
    make_rows();
    make_masks();
    make_scalars();
    fill_keys();
    if (options.poison_masked_values) poison_masked_values();
  }
  RandomBatch(const RandomBatch&) = delete;
  RandomBatch& operator=(const RandomBatch&) = delete;

  [[nodiscard]] std::int32_t num_seqs() const {
    return static_cast<std::int32_t>(options.requests.size());
  }
  [[nodiscard]] std::int64_t total_q() const { return qo_indptr.back() + options.padding_rows; }

  /// The smallest limits that the batch fits in.
  [[nodiscard]] BatchLimits limits() const {
    BatchLimits limits{num_seqs(), static_cast<std::int32_t>(total_q()), 0};
    for (const Request& request : options.requests) {
      limits.max_kv_len = std::max(limits.max_kv_len, request.kv_len);
    }
    return limits;
  }

  /// Element of o as computed.
  [[nodiscard]] float o(std::int64_t row, std::int64_t head, std::int64_t dim) const {
    return o_elements.get(row * tensors.o.stride(0) + head * tensors.o.stride(1) + dim);
  }
  [[nodiscard]] float lse(std::int64_t row, std::int64_t head) const {
    return lse_elements.get(row * tensors.lse.stride(0) + head * tensors.lse.stride(1));
  }
  /// Largest |v| that any query may see, scales included.
  [[nodiscard]] double max_abs_v() const { return max_abs_v_; }

  /// Offset of a key's row in a cache view.
  [[nodiscard]] std::int64_t row_offset(const TensorView& cache, std::size_t seq, std::int64_t key,
                                        std::int64_t head) const {
    const bool heads_first = spec.kv_layout == KvLayout::kHND;
    const int axes = paged() ? 1 : 0;
    const std::int64_t token_stride = cache.stride(axes + (heads_first ? 1 : 0));
    const std::int64_t head_stride = cache.stride(axes + (heads_first ? 0 : 1));
    if (!paged()) return (kv_indptr[seq] + key) * token_stride + head * head_stride;
    const std::int64_t page = pages_[seq][static_cast<std::size_t>(key / spec.page_size)];
    return page * cache.stride(0) + key % spec.page_size * token_stride + head * head_stride;
  }

  /// Forgets results: o and lse become NaN again.
  void forget_results() {
    o_elements = ElementBuffer(o_elements.dtype(), o_elements.size());
    lse_elements = ElementBuffer(DType::kFloat32, lse_elements.size());
    bind_outputs();
  }

  /// @return Whether what lies between the rows of o is as it was.
  [[nodiscard]] bool gaps_are_untouched() const {
    if (!options.strided_output) return true;
    std::vector<bool> owned(static_cast<std::size_t>(o_elements.size()), false);
    for (std::int64_t row = 0; row < total_q(); ++row) {
      for (std::int64_t head = 0; head < spec.num_qo_heads; ++head) {
        const auto first =
            static_cast<std::ptrdiff_t>(row * tensors.o.stride(0) + head * tensors.o.stride(1));
        std::fill_n(owned.begin() + first, spec.head_dim_vo, true);
      }
    }
    for (std::int64_t i = 0; i < o_elements.size(); ++i) {
      if (!owned[static_cast<std::size_t>(i)] && !std::isnan(o_elements.get(i))) return false;
    }
    return true;
  }

  RandomBatchOptions options;
  AttentionSpec spec;  ///< with head_dim_vo, o_dtype and page_size filled in
  Batch batch;
  AttentionTensors tensors;

  // The memory behind the views, to be spoilt by tests of bad input.
  std::vector<std::int32_t> qo_indptr, kv_len, page_table, kv_page_indptr, kv_page_indices,
      kv_last_page_len, kv_indptr, prefix_leaders, prefix_pages;
  bool names_all_prefixes = false;  ///< none is deeper than groups can say
  std::vector<std::uint32_t> tree_mask;
  std::vector<std::uint8_t> full_mask;
  std::vector<std::int64_t> full_mask_indptr;
  std::vector<float> q_scale, k_scale, v_scale, sinks, alibi_slopes;
  ElementBuffer q_elements, k_elements, v_elements, o_elements, lse_elements;
  std::int64_t num_pages = 1;
  std::int64_t page_tokens = 0;

 private:
  [[nodiscard]] bool paged() const { return spec.page_size != kContiguousKv; }
  [[nodiscard]] std::int32_t pages_of(std::int32_t keys) const {
    return (keys + spec.page_size - 1) / spec.page_size;
  }
  /// One of many numbers that were drawn once: a batch has millions.
  float normal() {
    static const std::vector<float> kDrawn = [] {
      std::vector<float> drawn(std::size_t{1} << kDrawnBits);
      std::mt19937 random(1);
      std::normal_distribution<float> distribution;
      std::ranges::generate(drawn, [&] { return distribution(random); });
      return drawn;
    }();
    return options.magnitude * kDrawn[places_() >> (64 - kDrawnBits)];  // upper bits are the best
  }

  void make_lengths() {
    qo_indptr = {0};
    for (const Request& request : options.requests) {
      qo_indptr.push_back(qo_indptr.back() + request.qo_len);
      kv_len.push_back(request.kv_len);
    }
    batch.qo_indptr = TensorView(qo_indptr.data(), DType::kInt32, {num_seqs() + 1});
  }

  /// First key that a query of the request may see; kv_len if it has no query.
  [[nodiscard]] std::int32_t first_needed_key(const Request& request) const {
    if (request.qo_len == 0) return request.kv_len;
    if (spec.window_left < 0) return 0;
    return std::max(0, request.kv_len - request.qo_len - spec.window_left);
  }

  void make_tables() {
    if (!paged()) {
      make_contiguous_table();
      return;
    }
    // Half as many pages again as are needed, in random order: what is left over stays NaN.
    const std::int32_t shared = options.shared_pages;
    const std::int32_t common = shared + options.branch_pages;
    std::int32_t owned = shared + options.num_branches * options.branch_pages;
    for (const Request& request : options.requests) owned += pages_of(request.kv_len);
    num_pages = options.pool_pages > 0 ? options.pool_pages : owned + owned / 2 + 1;
    page_tokens = spec.page_size;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_pages));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
    std::int32_t free = shared + options.num_branches * options.branch_pages;
    for (const Request& request : options.requests) {
      const auto branch = static_cast<std::int32_t>(pages_.size()) % options.num_branches;
      std::vector<std::int32_t> pages =
          options.page_forest ? random_beginning(request) : std::vector<std::int32_t>();
      for (auto page = static_cast<std::int32_t>(pages.size()); page < pages_of(request.kv_len);
           ++page) {
        std::int32_t at = page < common ? page + branch * options.branch_pages : free++;
        if (page < shared) at = page;
        pages.push_back(ids.at(static_cast<std::size_t>(at)));
      }
      pages_.push_back(pages);
    }
    if (options.source == KeySource::kDense) {
      make_dense_table();
    } else {
      make_csr_table();
    }
  }

  void name_prefixes() {
    PageTables tables = pages_;
    for (std::size_t seq = 0; seq < tables.size(); ++seq) {
      if (options.requests[seq].qo_len == 0) tables[seq].clear();
    }
    std::mt19937 random(options.seed);
    NamedGroups groups = named_groups(tables, random);
    names_all_prefixes = groups.is_complete;
    prefix_leaders = std::move(groups.leaders);
    prefix_pages = std::move(groups.pages);
    const std::initializer_list<std::int64_t> shape = {kMaxPrefixLevels, num_seqs()};
    batch.prefix_leaders = TensorView(prefix_leaders.data(), DType::kInt32, shape);
    batch.prefix_pages = TensorView(prefix_pages.data(), DType::kInt32, shape);
  }

  /// Pages that a request's table begins with, of an earlier one; often none.
  std::vector<std::int32_t> random_beginning(const Request& request) {
    const auto pick = [&](std::size_t below) {
      return std::uniform_int_distribution<std::size_t>(0, below - 1)(random_);
    };
    constexpr std::size_t kOneIn = 5;  // that begins anew
    if (pages_.empty() || pick(kOneIn) == 0) return {};
    std::vector<std::int32_t> pages = pages_[pick(pages_.size())];
    const auto most = std::min(pages.size(), static_cast<std::size_t>(pages_of(request.kv_len)));
    pages.resize(pick(most + 1));
    return pages;
  }

  /// The entry of a request's table: its page, or poison if no query needs it.
  [[nodiscard]] std::int32_t entry(std::size_t seq, std::size_t page) const {
    const Request& request = options.requests[seq];
    const auto first_needed = static_cast<std::size_t>(first_needed_key(request) / spec.page_size);
    if (request.qo_len == 0 || page < first_needed || page >= pages_[seq].size()) return kStaleId;
    return pages_[seq][page];
  }

  void make_dense_table() {
    auto width = static_cast<std::size_t>(options.stale_pages);
    for (const std::vector<std::int32_t>& pages : pages_) {
      width = std::max(width, pages.size() + static_cast<std::size_t>(options.stale_pages));
    }
    if (options.table_width > 0) width = static_cast<std::size_t>(options.table_width);
    const std::size_t stride = width + 3;
    page_table.assign(pages_.size() * stride, -kStaleId);
    for (std::size_t seq = 0; seq < pages_.size(); ++seq) {
      for (std::size_t page = 0; page < width; ++page) {
        page_table[seq * stride + page] = entry(seq, page);
      }
    }
    batch.page_table =
        TensorView(page_table.data(), DType::kInt32, {num_seqs(), static_cast<std::int64_t>(width)},
                   {static_cast<std::int64_t>(stride), 1});
    batch.kv_len = TensorView(kv_len.data(), DType::kInt32, {num_seqs()});
  }

  void make_csr_table() {
    const bool exact = options.source == KeySource::kCsr;
    const auto stale = static_cast<std::size_t>(exact ? 0 : options.stale_pages);
    kv_page_indptr = {0};
    for (std::size_t seq = 0; seq < pages_.size(); ++seq) {
      for (std::size_t page = 0; page < pages_[seq].size() + stale; ++page) {
        kv_page_indices.push_back(entry(seq, page));
      }
      kv_page_indptr.push_back(static_cast<std::int32_t>(kv_page_indices.size()));
      const std::int32_t keys = options.requests[seq].kv_len;
      kv_last_page_len.push_back(keys == 0 ? kStaleId : (keys - 1) % spec.page_size + 1);
    }
    if (options.table_width > 0) {
      kv_page_indices.resize(pages_.size() * static_cast<std::size_t>(options.table_width),
                             kStaleId);
    }
    batch.kv_page_indptr = TensorView(kv_page_indptr.data(), DType::kInt32, {num_seqs() + 1});
    batch.kv_page_indices = TensorView(kv_page_indices.data(), DType::kInt32,
                                       {static_cast<std::int64_t>(kv_page_indices.size())});
    if (exact) {
      batch.kv_last_page_len = TensorView(kv_last_page_len.data(), DType::kInt32, {num_seqs()});
    } else {
      batch.kv_len = TensorView(kv_len.data(), DType::kInt32, {num_seqs()});
    }
  }

  void make_contiguous_table() {
    kv_indptr = {3};  // rows of other requests come before
    for (const Request& request : options.requests) {
      kv_indptr.push_back(kv_indptr.back() + request.kv_len);
    }
    page_tokens = kv_indptr.back() + 5;
    batch.kv_indptr = TensorView(kv_indptr.data(), DType::kInt32, {num_seqs() + 1});
  }

  void make_cache() {
    const std::int64_t d = spec.head_dim_qk;
    const std::int64_t dv = spec.head_dim_vo;
    const std::int64_t rows = page_tokens * spec.num_kv_heads;
    std::int64_t page = rows * d;  // elements from page to page
    std::int64_t row = d;          // elements from row to row
    std::int64_t k_offset = 0;
    std::int64_t v_offset = 0;
    const bool same_dims = d == dv;
    CacheStorage storage = same_dims ? options.storage : CacheStorage::kApart;
    if (options.storage == CacheStorage::kPackedDims) storage = CacheStorage::kPackedDims;
    switch (storage) {
      case CacheStorage::kApart:
        break;
      case CacheStorage::kGaps:
        page += 16 / static_cast<std::int64_t>(size_of(spec.kv_dtype));
        [[fallthrough]];
      case CacheStorage::kTwoPages:
        v_offset = num_pages * page;
        break;
      case CacheStorage::kPagesTwo:
        v_offset = page;
        page *= 2;
        break;
      case CacheStorage::kPagesLayersTwo: {
        constexpr std::int64_t kLayers = 3;
        k_offset = 2 * page;
        v_offset = 3 * page;
        page *= 2 * kLayers;
        break;
      }
      case CacheStorage::kPackedDims:
        v_offset = d;
        row = d + dv;
        page = rows * row;
        break;
    }
    k_elements = ElementBuffer(spec.kv_dtype, 2 * num_pages * std::max(page, rows * row));
    poison_if_int8(k_elements);
    tensors.k = cache_view(k_elements, k_offset, page, row, d);
    if (storage == CacheStorage::kApart) {
      v_elements = ElementBuffer(spec.kv_dtype, num_pages * rows * dv);
      poison_if_int8(v_elements);
      tensors.v = cache_view(v_elements, 0, rows * dv, dv, dv);
    } else {
      tensors.v = cache_view(k_elements, v_offset, page, row, dv);
    }
  }

  /// The largest magnitude, in place of NaN.
  static void poison_if_int8(ElementBuffer& elements) {
    if (elements.dtype() == DType::kInt8) std::ranges::fill(elements.bytes(), std::byte{0x80});
  }

  MutableTensorView cache_view(ElementBuffer& elements, std::int64_t offset,
                               std::int64_t page_stride, std::int64_t row_stride,
                               std::int64_t head_dim) {
    const bool heads_first = spec.kv_layout == KvLayout::kHND;
    const std::int64_t heads = spec.num_kv_heads;
    std::int64_t token = heads_first ? row_stride : heads * row_stride;
    std::int64_t head = heads_first ? page_tokens * row_stride : row_stride;
    if (heads == 1) head = kMeaningless;
    if (page_tokens == 1) token = kMeaningless;
    if (!paged()) {
      return heads_first
                 ? view_of(elements, offset, {heads, page_tokens, head_dim}, {head, token, 1})
                 : view_of(elements, offset, {page_tokens, heads, head_dim}, {token, head, 1});
    }
    return heads_first ? view_of(elements, offset, {num_pages, heads, page_tokens, head_dim},
                                 {page_stride, head, token, 1})
                       : view_of(elements, offset, {num_pages, page_tokens, heads, head_dim},
                                 {page_stride, token, head, 1});
  }

  void make_rows() {
    const std::int64_t d = spec.head_dim_qk;
    const std::int64_t heads = spec.num_qo_heads;
    const std::int64_t fused_heads = heads + (options.fused_qkv ? 2 * spec.num_kv_heads : 0);
    q_elements = ElementBuffer(spec.q_dtype, total_q() * fused_heads * d);
    tensors.q = view_of(q_elements, 0, {total_q(), heads, d}, {fused_heads * d, d, 1});
    for (std::int64_t row = 0; row < qo_indptr.back(); ++row) {  // padding stays NaN
      for (std::int64_t i = 0; i < heads * d; ++i) {
        q_elements.set(row * fused_heads * d + i, normal());
      }
    }
    const std::int64_t gap = options.strided_output ? 8 : 0;
    o_elements = ElementBuffer(spec.o_dtype, total_q() * (heads * (spec.head_dim_vo + gap) + gap));
    lse_elements = ElementBuffer(DType::kFloat32, total_q() * heads * (gap + 1));
    bind_outputs();
  }

  void bind_outputs() {
    const std::int64_t heads = spec.num_qo_heads;
    const std::int64_t gap = options.strided_output ? 8 : 0;
    const std::int64_t head_stride = spec.head_dim_vo + gap;
    tensors.o = view_of(o_elements, 0, {total_q(), heads, spec.head_dim_vo},
                        {heads * head_stride + gap, head_stride, 1});
    tensors.lse = options.strided_output
                      ? view_of(lse_elements, 0, {total_q(), heads}, {1, total_q()})
                      : view_of(lse_elements, 0, {total_q(), heads}, {heads, 1});
  }

  void make_masks() {
    std::bernoulli_distribution seen(options.mask_density);
    if (spec.mask == Mask::kTree) {
      constexpr std::int32_t kWordBits = 32;
      std::int32_t longest = 0;
      for (const Request& request : options.requests) longest = std::max(longest, request.qo_len);
      const auto words = static_cast<std::size_t>((longest + kWordBits - 1) / kWordBits + 1);
      tree_mask.resize(static_cast<std::size_t>(total_q()) * words);
      for (std::uint32_t& word : tree_mask) {
        for (std::uint32_t bit = 0; bit < kWordBits; ++bit)
          word |= std::uint32_t{seen(random_)} << bit;
      }
      batch.tree_mask = TensorView(tree_mask.data(), DType::kUInt32,
                                   {total_q(), static_cast<std::int64_t>(words)});
    }
    if (spec.mask == Mask::kFull) {
      full_mask_indptr = {0};
      for (const Request& request : options.requests) {
        const std::int64_t bits = static_cast<std::int64_t>(request.qo_len) * request.kv_len;
        full_mask_indptr.push_back(full_mask_indptr.back() + (bits + 7) / 8);
      }
      full_mask.resize(static_cast<std::size_t>(full_mask_indptr.back()));
      for (std::uint8_t& byte : full_mask) {
        for (int bit = 0; bit < 8; ++bit)
          byte = static_cast<std::uint8_t>(byte << 1 | seen(random_));
      }
      batch.full_mask = TensorView(full_mask.data(), DType::kUInt8,
                                   {static_cast<std::int64_t>(full_mask.size())});
      batch.full_mask_indptr = TensorView(full_mask_indptr.data(), DType::kInt64, {num_seqs() + 1});
    }
  }

  void make_scalars() {
    std::uniform_real_distribution<float> around_one(0.5F, 2.0F);
    const auto make = [&](std::vector<float>& values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) values.push_back(around_one(random_));
      return TensorView(values.data(), DType::kFloat32, {count});
    };
    if (spec.kv_scale != KvScale::kNone) {
      const bool per_token = spec.kv_scale == KvScale::kPerToken;
      std::int64_t count = spec.kv_scale == KvScale::kPerHead ? spec.num_kv_heads : 1;
      if (per_token) count = num_pages * spec.num_kv_heads * scales_per_head();
      tensors.k_scale = make(k_scale, count);
      tensors.v_scale = make(v_scale, count);
      for (std::vector<float>* scales : {&k_scale, &v_scale}) {
        for (float& scale : *scales) {
          if (per_token) scale = std::numeric_limits<float>::quiet_NaN();  // until there is a key
          scale /= step_of_kv();
        }
      }
      if (per_token) {
        tensors.k_scale = token_scale_view(k_scale);
        tensors.v_scale = token_scale_view(v_scale);
      }
    } else if (spec.kv_dtype == DType::kInt8 && spec.sm_scale == 0.0F) {  // smaller logits
      spec.sm_scale = 1.0F / (step_of_kv() * std::sqrt(static_cast<float>(spec.head_dim_qk)));
    }
    if (options.query_scales > 0) {
      tensors.q_scale = make(q_scale, options.query_scales == 1 ? 1 : spec.num_qo_heads);
    }
    if (spec.sinks) tensors.sinks = make(sinks, spec.num_qo_heads);
    if (spec.alibi) {
      tensors.alibi_slopes = make(alibi_slopes, spec.num_qo_heads);
      for (float& slope : alibi_slopes) slope *= 0.125F;
    }
  }

  /// Units of 1 in the cache.
  [[nodiscard]] float step_of_kv() const { return spec.kv_dtype == DType::kInt8 ? 32.0F : 1.0F; }

  /// Of a page, with what is left free behind them.
  [[nodiscard]] std::int64_t scales_per_head() const {
    return page_tokens + options.token_scale_gap;
  }

  /// [page, head, token], or [head, row] of contiguous K and V.
  [[nodiscard]] TensorView token_scale_view(const std::vector<float>& scales) const {
    const std::int64_t heads = spec.num_kv_heads;
    const std::int64_t stride = scales_per_head();
    if (!paged()) return {scales.data(), DType::kFloat32, {heads, page_tokens}, {stride, 1}};
    return {scales.data(),
            DType::kFloat32,
            {num_pages, heads, page_tokens},
            {heads * stride, stride, 1}};
  }

  /// Index of a key's scale, if scales are per token.
  [[nodiscard]] std::size_t scale_index(std::size_t seq, std::int64_t key,
                                        std::int64_t head) const {
    if (!paged()) return static_cast<std::size_t>(head * scales_per_head() + kv_indptr[seq] + key);
    const std::int64_t page = pages_[seq][static_cast<std::size_t>(key / spec.page_size)];
    return static_cast<std::size_t>((page * spec.num_kv_heads + head) * scales_per_head() +
                                    key % spec.page_size);
  }

  void make_token_scale(std::size_t seq, std::int64_t key, std::int64_t head) {
    if (spec.kv_scale != KvScale::kPerToken) return;
    const std::size_t at = scale_index(seq, key, head);
    if (!std::isnan(k_scale[at])) return;  // a shared page
    std::uniform_real_distribution<float> around_one(0.5F, 2.0F);
    std::uniform_int_distribution<int> power(-options.value_scale_powers,
                                             options.value_scale_powers);
    k_scale[at] = around_one(random_) / step_of_kv();
    const float v = around_one(random_);  // before the power, whatever the compiler
    v_scale[at] = std::ldexp(v, power(random_)) / step_of_kv();
  }

  /// Writes one row of a cache. Tensors of the batch are views of memory that this owns.
  void set_row(const TensorView& cache, std::int64_t offset, std::int64_t head_dim, bool poison) {
    const auto size = static_cast<std::int64_t>(size_of(cache.dtype));
    auto* row = static_cast<std::byte*>(const_cast<void*>(cache.data)) + offset * size;
    for (std::int64_t i = 0; i < head_dim; ++i) {
      encode(poison ? std::numeric_limits<float>::quiet_NaN() : normal() * step_of_kv(),
             row + i * size, cache.dtype);
    }
  }

  [[nodiscard]] float scale_of_v(std::size_t seq, std::int64_t key, std::int64_t head) const {
    if (v_scale.empty()) return 1.0F;
    if (spec.kv_scale == KvScale::kPerToken) return v_scale[scale_index(seq, key, head)];
    return v_scale[v_scale.size() == 1 ? 0 : static_cast<std::size_t>(head)];
  }

  void fill_keys() {
    for (std::size_t seq = 0; seq < options.requests.size(); ++seq) {
      const Request& request = options.requests[seq];
      for (std::int32_t key = first_needed_key(request); key < request.kv_len; ++key) {
        for (std::int32_t head = 0; head < spec.num_kv_heads; ++head) {
          make_token_scale(seq, key, head);
          set_row(tensors.k, row_offset(tensors.k, seq, key, head), spec.head_dim_qk, false);
          const std::int64_t v = row_offset(tensors.v, seq, key, head);
          set_row(tensors.v, v, spec.head_dim_vo, false);
          const auto size = static_cast<std::int64_t>(size_of(tensors.v.dtype));
          const auto* row = static_cast<const std::byte*>(tensors.v.data) + v * size;
          const float scale = scale_of_v(seq, key, head);
          for (std::int32_t i = 0; i < spec.head_dim_vo; ++i) {
            max_abs_v_ = std::max<double>(
                max_abs_v_, std::abs(decode(row + i * size, tensors.v.dtype)) * scale);
          }
        }
      }
    }
  }

  /// Every third of the new keys: earlier queries do not see them (or, with a mask, some do not).
  void poison_masked_values() {
    for (std::size_t seq = 0; seq < options.requests.size(); ++seq) {
      const Request& request = options.requests[seq];
      const std::int32_t first_new = std::max(0, request.kv_len - request.qo_len);
      for (std::int32_t key = first_new; key < request.kv_len; key += 3) {
        for (std::int32_t head = 0; head < spec.num_kv_heads; ++head) {
          set_row(tensors.v, row_offset(tensors.v, seq, key, head), spec.head_dim_vo, true);
        }
      }
    }
  }

  static constexpr int kDrawnBits = 16;
  /// Knuth's, modulo 2^64.
  using Places =
      std::linear_congruential_engine<std::uint64_t, 6364136223846793005U, 1442695040888963407U, 0>;

  std::mt19937 random_;
  Places places_;                                 // of elements among those drawn
  std::vector<std::vector<std::int32_t>> pages_;  // of each request
  double max_abs_v_ = 0.0;
};

/// How far results are from the oracle's.
struct Difference {
  double o = 0.0;               ///< largest |o − oracle| before output rounding, over max |v|
  double lse = 0.0;             ///< largest |lse − oracle|
  std::int64_t mismatches = 0;  ///< elements that are NaN, 0 or −inf on one side only
};

/// Half a unit in the last place, relative: what rounding to the dtype may move a number by.
inline double rounding_of(DType dtype) {
  if (dtype == DType::kBFloat16) return 0x1p-8;
  return dtype == DType::kFloat16 ? 0x1p-11 : 0.0;
}

inline Difference compare(const RandomBatch& batch, const ReferenceResult& oracle) {
  Difference difference;
  const double rounding = rounding_of(batch.spec.o_dtype);
  const bool has_lse = batch.tensors.lse.given();
  const double scale = batch.max_abs_v() > 0.0 ? batch.max_abs_v() : 1.0;
  std::size_t at = 0;
  std::size_t at_lse = 0;
  for (std::int64_t row = 0; row < batch.total_q(); ++row) {
    for (std::int64_t head = 0; head < batch.spec.num_qo_heads; ++head, ++at_lse) {
      const double expected_lse = oracle.lse[at_lse];
      const double lse = has_lse ? batch.lse(row, head) : expected_lse;
      if (std::isfinite(expected_lse) && std::isfinite(lse)) {
        difference.lse = std::max(difference.lse, std::abs(lse - expected_lse));
      } else if (expected_lse != lse) {
        ++difference.mismatches;
      }
      for (std::int64_t i = 0; i < batch.spec.head_dim_vo; ++i, ++at) {
        const double expected = oracle.o[at];
        const double got = batch.o(row, head, i);
        if (std::isnan(expected) != std::isnan(got) || (std::isinf(expected_lse) && got != 0.0)) {
          ++difference.mismatches;
        } else if (!std::isnan(expected)) {
          const double before_rounding = std::abs(got - expected) - rounding * std::abs(expected);
          difference.o = std::max(difference.o, before_rounding / scale);
        }
      }
    }
  }
  return difference;
}

/// o and lse as computed, bit for bit.
inline std::vector<std::byte> result_bytes(RandomBatch& batch) {
  std::vector<std::byte> bytes(batch.o_elements.bytes().begin(), batch.o_elements.bytes().end());
  bytes.insert(bytes.end(), batch.lse_elements.bytes().begin(), batch.lse_elements.bytes().end());
  return bytes;
}

/// Bytes aligned as workspaces must be, full of rubbish.
class RubbishWorkspace {
 public:
  explicit RubbishWorkspace(std::size_t size)
      : bytes_(size + kWorkspaceAlignment, std::byte{0xa5}), size_(size) {}
  [[nodiscard]] Workspace get() {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    const std::size_t skip = kWorkspaceAlignment - address % kWorkspaceAlignment;
    return {bytes_.data() + skip, size_};
  }

 private:
  std::vector<std::byte> bytes_;
  std::size_t size_;
};

/// Schedules and runs a batch in workspaces full of rubbish.
inline Status run(const Attention& attention, RandomBatch& batch) {
  RubbishWorkspace schedule(attention.workspace_sizes().schedule);
  RubbishWorkspace scratch(attention.workspace_sizes().scratch);
  Status status = attention.schedule(batch.batch, schedule.get());
  if (!status.ok()) return status;
  return attention.run(batch.batch, batch.tensors, schedule.get(), scratch.get());
}

}  // namespace quire::testing
