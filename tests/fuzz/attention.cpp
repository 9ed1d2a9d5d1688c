// SPDX-License-Identifier: Apache-2.0
// The C ABI of attention, append and merge. Bytes describe a small problem, its buffers are exactly
// as large as its tensors say, and then some things are spoilt that the library promises to notice:
// dtypes, ranks, shapes, nulls, struct sizes, flags, and everything that indices and lengths say.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "fuzz/bytes.hpp"
#include "quire/quire.h"

namespace quire::fuzz {
namespace {

constexpr quire_device kCpu = {QUIRE_DEVICE_CPU, 0};
constexpr std::size_t kWidest = 8;  // bytes; buffers hold elements of any dtype
constexpr std::size_t kMostBytes = std::size_t{64} << 20;  // of a workspace

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

/// Calls tasks in this thread, so that a run is the same every time.
void call_in_order(void*, std::int32_t count, quire_task task, void* context) {
  for (std::int32_t index = 0; index < count; ++index) task(context, index);
}

class Problem {
 public:
  Problem(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {
    quire_executor_callbacks callbacks = QUIRE_EXECUTOR_CALLBACKS_INIT;
    callbacks.parallel = call_in_order;
    callbacks.concurrency = bytes_.between(1, 4);
    require(quire_executor_create(&callbacks, &executor_) == QUIRE_OK);
    options_.executor = executor_;
  }
  ~Problem() {
    quire_attention_destroy(attention_);
    quire_executor_destroy(executor_);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  void run() {
    draw_spec();
    draw_batch();
    draw_tensors();
    quire_supports(kCpu, &spec_, nullptr);
    const char* kernel = nullptr;
    const quire_status made =
        quire_attention_create(kCpu, &spec_, &limits_, &options_, &attention_);
    require((made == QUIRE_OK) == (attention_ != nullptr));
    if (made == QUIRE_OK) {
      kernel = quire_attention_kernel(attention_);
      require(kernel != nullptr);
      attend();
    }
    append();
    merge();
    sizes_of_huge_limits();
  }

 private:
  /// A tensor on memory of exactly its size, which is a little larger than the shape with `gap`.
  quire_tensor tensor(quire_dtype dtype, std::initializer_list<std::int64_t> shape) {
    quire_tensor tensor = quire_tensor_packed(
        nullptr, dtype, kCpu, static_cast<std::int32_t>(shape.size()), shape.begin());
    if (tensor.rank > 1 && bytes_.once_in(4)) widen(tensor);
    std::int64_t elements = 1;
    for (std::int32_t axis = 0; axis < tensor.rank; ++axis) {
      if (tensor.shape[axis] == 0) elements = 0;
    }
    for (std::int32_t axis = 0; axis < tensor.rank && elements > 0; ++axis) {
      elements += (tensor.shape[axis] - 1) * tensor.strides[axis];
    }
    memory_.emplace_back(std::calloc(static_cast<std::size_t>(elements), kWidest));
    tensor.data = memory_.back().get();
    return tensor;
  }

  /// Rows with a gap after each.
  void widen(quire_tensor& tensor) {
    const std::int64_t gap = bytes_.between(1, 3);
    for (std::int32_t axis = tensor.rank - 2; axis >= 0; --axis) {
      tensor.strides[axis] = tensor.strides[axis + 1] * tensor.shape[axis + 1] + gap;
    }
  }

  template <typename Number>
  Number* at(const quire_tensor& tensor, std::int64_t row, std::int64_t column = 0) {
    return static_cast<Number*>(tensor.data) + row * tensor.strides[0] + column;
  }

  void noise(const quire_tensor& tensor) {
    if (tensor.dtype != QUIRE_FLOAT32) return;
    if (std::count(tensor.shape, tensor.shape + tensor.rank, 0) > 0) return;
    const std::int32_t values = bytes_.between(0, 4);
    for (std::int32_t i = 0; i < values; ++i) {
      *at<float>(tensor, bytes_.between(0, 255) % tensor.shape[0]) = bytes_.take<float>();
    }
  }

  void draw_spec() {
    spec_.num_kv_heads = bytes_.between(1, 3);
    spec_.num_qo_heads = spec_.num_kv_heads * bytes_.between(1, 5);
    spec_.head_dim_qk = 8 * bytes_.between(1, 5);
    spec_.head_dim_vo = bytes_.once_in(3) ? 8 * bytes_.between(1, 5) : 0;
    constexpr quire_dtype kDtypes[] = {QUIRE_FLOAT32, QUIRE_BFLOAT16, QUIRE_FLOAT16, QUIRE_INT8,
                                       QUIRE_FLOAT8_E4M3};
    spec_.q_dtype = bytes_.one_of(kDtypes);
    spec_.kv_dtype = bytes_.once_in(3) ? bytes_.one_of(kDtypes) : spec_.q_dtype;
    spec_.o_dtype = bytes_.once_in(3) ? QUIRE_FLOAT32 : QUIRE_DTYPE_NONE;
    spec_.kv_layout = bytes_.between(0, 1);
    spec_.page_size = bytes_.one_of<std::int32_t>({4, 1, 3, 16, QUIRE_CONTIGUOUS_KV});
    spec_.mask = bytes_.between(0, 3);
    spec_.window_left = bytes_.one_of<std::int32_t>({-1, 0, 1, 7, INT32_MAX});
    spec_.logits_soft_cap = bytes_.once_in(4) ? 3.0F : 0.0F;
    spec_.sinks = bytes_.between(0, 1);
    spec_.alibi = bytes_.between(0, 1);
    spec_.kv_scale = bytes_.between(0, 2);
    limits_.max_num_seqs = bytes_.between(0, 8);
    limits_.max_total_q = bytes_.between(0, 64);
    limits_.max_kv_len = bytes_.between(0, 255);
    if (!bytes_.once_in(4)) return;
    std::int32_t* const fields[] = {&spec_.num_kv_heads, &spec_.num_qo_heads, &spec_.head_dim_qk,
                                    &spec_.head_dim_vo,  &spec_.page_size,    &spec_.mask,
                                    &spec_.window_left,  &spec_.q_dtype,      &spec_.kv_dtype,
                                    &spec_.o_dtype,      &spec_.kv_layout,    &spec_.sinks,
                                    &spec_.kv_scale,     &limits_.reserved,   &spec_.alibi};
    *bytes_.one_of(fields) = bytes_.edge();
    if (bytes_.once_in(4)) spec_.sm_scale = bytes_.take<float>();
    if (bytes_.once_in(4)) spec_.logits_soft_cap = bytes_.take<float>();
    if (bytes_.once_in(8)) spec_.struct_size = bytes_.take<std::uint8_t>() % (sizeof(spec_) + 1);
  }

  [[nodiscard]] std::int64_t page_size() const {
    return spec_.page_size > 0 && spec_.page_size <= 16 ? spec_.page_size : 4;
  }

  /// Offsets in order, or nearly so.
  quire_tensor indptr(std::int32_t count, std::int32_t step) {
    const quire_tensor offsets = tensor(QUIRE_INT32, {count + 1});
    std::int32_t offset = bytes_.once_in(16) ? bytes_.edge() : 0;
    for (std::int32_t i = 0; i <= count; ++i) {
      *at<std::int32_t>(offsets, i) = offset;
      offset = bytes_.once_in(16)
                   ? bytes_.edge()
                   : static_cast<std::int32_t>(static_cast<std::uint32_t>(offset) +
                                               static_cast<std::uint32_t>(bytes_.between(0, step)));
    }
    return offsets;
  }

  quire_tensor numbers(std::int32_t count, std::int32_t low, std::int32_t high) {
    const quire_tensor list = tensor(QUIRE_INT32, {count});
    for (std::int32_t i = 0; i < count; ++i) {
      *at<std::int32_t>(list, i) = bytes_.once_in(16) ? bytes_.edge() : bytes_.between(low, high);
    }
    return list;
  }

  void draw_batch() {
    num_seqs_ = bytes_.between(0, 4);
    total_q_ = bytes_.between(0, 24);
    num_pages_ = bytes_.between(1, 6);
    width_ = bytes_.between(0, 4);
    batch_.qo_indptr = indptr(num_seqs_, 8);
    const std::int32_t longest = static_cast<std::int32_t>(width_ * page_size());
    const std::int32_t source = bytes_.between(0, 2);
    if (source != 1 || bytes_.once_in(2)) batch_.kv_len = numbers(num_seqs_, 0, longest);
    if (spec_.page_size == QUIRE_CONTIGUOUS_KV) {
      batch_.kv_indptr = indptr(num_seqs_, 16);
    } else if (source == 0) {
      batch_.page_table = tensor(QUIRE_INT32, {num_seqs_, width_});
      for (std::int32_t seq = 0; seq < num_seqs_; ++seq) {
        for (std::int32_t i = 0; i < width_; ++i) {
          *at<std::int32_t>(batch_.page_table, seq, i) = page();
        }
      }
    } else {
      batch_.kv_page_indptr = indptr(num_seqs_, 4);
      const std::int32_t count = bytes_.between(0, 16);
      batch_.kv_page_indices = tensor(QUIRE_INT32, {count});
      for (std::int32_t i = 0; i < count; ++i) {
        *at<std::int32_t>(batch_.kv_page_indices, i) = page();
      }
      if (bytes_.once_in(2)) {
        batch_.kv_last_page_len = numbers(num_seqs_, 1, static_cast<std::int32_t>(page_size()));
      }
    }
    draw_masks();
  }

  std::int32_t page() {
    return bytes_.once_in(16) ? bytes_.edge()
                              : bytes_.between(0, static_cast<std::int32_t>(num_pages_) - 1);
  }

  void draw_masks() {
    if (spec_.mask == QUIRE_MASK_TREE) {
      batch_.tree_mask = tensor(QUIRE_UINT32, {bytes_.between(0, 24), bytes_.between(0, 2)});
    } else if (spec_.mask == QUIRE_MASK_FULL) {
      batch_.full_mask = tensor(QUIRE_UINT8, {bytes_.between(0, 200)});
      batch_.full_mask_indptr = tensor(QUIRE_INT64, {num_seqs_ + 1});
      std::int64_t offset = 0;
      for (std::int32_t i = 0; i <= num_seqs_; ++i) {
        *at<std::int64_t>(batch_.full_mask_indptr, i) = offset;
        offset = bytes_.once_in(16) ? bytes_.take<std::int64_t>() : offset + bytes_.between(0, 40);
        offset = offset < 0 && !bytes_.once_in(2) ? 0 : offset;
        if (offset > INT64_MAX / 2) offset = INT64_MAX / 2;
      }
    }
  }

  quire_tensor cache(std::int64_t head_dim) {
    const std::int64_t heads = spec_heads(spec_.num_kv_heads);
    const bool heads_first = spec_.kv_layout == QUIRE_LAYOUT_HND;
    if (spec_.page_size == QUIRE_CONTIGUOUS_KV) {
      const std::int64_t rows = 4 * num_pages_;
      return heads_first ? tensor(spec_.kv_dtype, {heads, rows, head_dim})
                         : tensor(spec_.kv_dtype, {rows, heads, head_dim});
    }
    return heads_first ? tensor(spec_.kv_dtype, {num_pages_, heads, page_size(), head_dim})
                       : tensor(spec_.kv_dtype, {num_pages_, page_size(), heads, head_dim});
  }

  static std::int64_t spec_heads(std::int32_t heads) {
    return heads > 0 && heads <= 16 ? heads : 1;
  }
  static std::int64_t spec_dim(std::int32_t dim) { return dim > 0 && dim <= 64 ? dim : 8; }

  void draw_tensors() {
    const std::int64_t heads = spec_heads(spec_.num_qo_heads);
    const std::int64_t dim_qk = spec_dim(spec_.head_dim_qk);
    const std::int64_t dim_vo = spec_.head_dim_vo == 0 ? dim_qk : spec_dim(spec_.head_dim_vo);
    tensors_.q = tensor(spec_.q_dtype, {total_q_, heads, dim_qk});
    tensors_.k = cache(dim_qk);
    tensors_.v = cache(dim_vo);
    tensors_.o = tensor(spec_.o_dtype == QUIRE_DTYPE_NONE ? spec_.q_dtype : spec_.o_dtype,
                        {total_q_, heads, dim_vo});
    if (bytes_.once_in(2)) tensors_.lse = tensor(QUIRE_FLOAT32, {total_q_, heads});
    if (spec_.kv_scale != QUIRE_SCALE_NONE) {
      const std::int64_t scales =
          spec_.kv_scale == QUIRE_SCALE_PER_HEAD ? spec_heads(spec_.num_kv_heads) : 1;
      tensors_.k_scale = tensor(QUIRE_FLOAT32, {scales});
      tensors_.v_scale = tensor(QUIRE_FLOAT32, {scales});
      noise(tensors_.k_scale);
    }
    if (spec_.q_dtype == QUIRE_FLOAT8_E4M3 && spec_.batch_invariant == 1) {
      tensors_.q_scale = tensor(QUIRE_FLOAT32, {heads});
      noise(tensors_.q_scale);
    }
    if (spec_.sinks == 1) tensors_.sinks = tensor(QUIRE_FLOAT32, {heads});
    if (spec_.alibi == 1) tensors_.alibi_slopes = tensor(QUIRE_FLOAT32, {heads});
    noise(tensors_.q);
    noise(tensors_.k);
    noise(tensors_.sinks);
  }

  /// Spoils one of the tensors in a way that the library can see.
  template <std::size_t N>
  void spoil(quire_tensor* const (&tensors)[N]) {
    if (!bytes_.once_in(4)) return;
    quire_tensor& tensor = *bytes_.one_of(tensors);
    const std::int32_t axis = bytes_.between(0, QUIRE_MAX_RANK - 1);
    switch (bytes_.between(0, 7)) {
      case 0:
        tensor.dtype = bytes_.between(0, 12);
        break;
      case 1:
        tensor.rank = bytes_.between(0, tensor.rank);
        break;
      case 2:
        tensor.rank = bytes_.edge();
        for (std::int64_t& size : tensor.shape) size = size > 1 ? 1 : size;
        break;
      case 3:
        tensor.shape[axis] = tensor.shape[axis] > 0 ? bytes_.between(0, 255) % tensor.shape[axis]
                                                    : tensor.shape[axis];
        break;
      case 4:
        tensor.shape[axis] = -1 - bytes_.take<std::uint16_t>();
        break;
      case 5:
        if (tensor.shape[axis] > 0 && axis < tensor.rank) tensor.data = nullptr;
        break;
      case 6:
        tensor.device = {bytes_.between(0, 2), bytes_.edge()};
        break;
      default:
        if (tensor.shape[axis] <= 1) tensor.strides[axis] = bytes_.take<std::int64_t>();
    }
  }

  /// Workspace of exactly the size, sometimes a byte or the alignment short.
  void* workspace(std::size_t& size) {
    memory_.emplace_back(
        std::aligned_alloc(QUIRE_WORKSPACE_ALIGNMENT,
                           (size / QUIRE_WORKSPACE_ALIGNMENT + 1) * QUIRE_WORKSPACE_ALIGNMENT));
    auto* data = static_cast<unsigned char*>(memory_.back().get());
    std::memset(data, 0xa5, size);
    if (bytes_.once_in(32) && size > 0) size -= 1;
    return bytes_.once_in(32) ? data + 1 : data;
  }

  /// Changes the batch after it was scheduled, as an engine does that is a step ahead of itself.
  void advance() {
    if (!bytes_.once_in(8) || num_seqs_ == 0) return;
    const quire_tensor tensors[] = {batch_.kv_len, batch_.qo_indptr, batch_.kv_page_indptr,
                                    batch_.kv_indptr};
    const quire_tensor tensor = bytes_.one_of(tensors);
    if (tensor.dtype != QUIRE_INT32 || tensor.rank != 1 || tensor.shape[0] < 1) return;
    auto* values = static_cast<std::int32_t*>(tensor.data);
    values[bytes_.between(0, 7) % tensor.shape[0]] =
        bytes_.once_in(4) ? bytes_.edge() : bytes_.between(0, 64);
  }

  void attend() {
    spoil<12>({&batch_.qo_indptr, &batch_.kv_len, &batch_.page_table, &batch_.kv_page_indptr,
               &batch_.kv_page_indices, &batch_.kv_last_page_len, &batch_.kv_indptr,
               &batch_.tree_mask, &batch_.full_mask, &batch_.full_mask_indptr, &batch_.qo_indptr,
               &batch_.kv_len});
    std::size_t schedule_bytes = 0;
    std::size_t scratch_bytes = 0;
    require(quire_attention_workspace_sizes(attention_, &schedule_bytes, &scratch_bytes) ==
            QUIRE_OK);
    if (schedule_bytes > kMostBytes || scratch_bytes > kMostBytes) return;  // heads by the million
    void* schedule = workspace(schedule_bytes);
    void* scratch = workspace(scratch_bytes);
    if (quire_attention_schedule(attention_, &batch_, schedule, schedule_bytes, nullptr) !=
        QUIRE_OK) {
      return;
    }
    spoil<10>({&tensors_.q, &tensors_.k, &tensors_.v, &tensors_.o, &tensors_.lse, &tensors_.q_scale,
               &tensors_.k_scale, &tensors_.v_scale, &tensors_.sinks, &tensors_.alibi_slopes});
    advance();
    quire_attention_run(attention_, &batch_, &tensors_, schedule, schedule_bytes, scratch,
                        scratch_bytes, nullptr);
    quire_attention_once(kCpu, &spec_, &batch_, &tensors_, nullptr, &options_);
  }

  void append() {
    quire_append_tensors tensors = QUIRE_APPEND_TENSORS_INIT;
    const std::int64_t heads = spec_heads(spec_.num_kv_heads);
    const quire_dtype dtype = bytes_.one_of<quire_dtype>({QUIRE_FLOAT32, QUIRE_BFLOAT16});
    tensors.k = tensor(dtype, {total_q_, heads, spec_dim(spec_.head_dim_qk)});
    tensors.v = tensor(dtype, {total_q_, heads, 8});
    tensors.k_cache = cache(spec_dim(spec_.head_dim_qk));
    tensors.v_cache = cache(8);
    if (bytes_.once_in(2)) {
      tensors.slot_mapping = tensor(QUIRE_INT64, {total_q_});
      for (std::int32_t i = 0; i < total_q_; ++i) {
        *at<std::int64_t>(tensors.slot_mapping, i) =
            bytes_.once_in(16) ? bytes_.take<std::int64_t>() : bytes_.between(-1, 30);
      }
    }
    if (bytes_.once_in(3)) tensors.k_scale = tensor(QUIRE_FLOAT32, {bytes_.between(1, 3)});
    if (bytes_.once_in(3)) tensors.v_scale = tensor(QUIRE_FLOAT32, {heads});
    spoil<7>({&tensors.k, &tensors.v, &tensors.k_cache, &tensors.v_cache, &tensors.slot_mapping,
              &tensors.k_scale, &tensors.v_scale});
    quire_append(kCpu, bytes_.between(0, 2), bytes_.once_in(8) ? nullptr : &batch_, &tensors,
                 nullptr, &options_);
  }

  void merge() {
    quire_merge_tensors tensors = QUIRE_MERGE_TENSORS_INIT;
    const std::int64_t parts = bytes_.between(0, 3);
    const std::int64_t rows = bytes_.between(0, 4);
    const std::int64_t heads = bytes_.between(0, 3);
    const std::int64_t dim = bytes_.between(0, 20);
    const quire_dtype dtype = bytes_.one_of<quire_dtype>({QUIRE_FLOAT32, QUIRE_FLOAT16});
    tensors.o_parts = tensor(dtype, {parts, rows, heads, dim});
    tensors.lse_parts = tensor(QUIRE_FLOAT32, {parts, rows, heads});
    tensors.o = tensor(QUIRE_FLOAT32, {rows, heads, dim});
    if (bytes_.once_in(2)) tensors.lse = tensor(QUIRE_FLOAT32, {rows, heads});
    noise(tensors.o_parts);
    noise(tensors.lse_parts);
    spoil<4>({&tensors.o_parts, &tensors.lse_parts, &tensors.o, &tensors.lse});
    quire_merge_states(kCpu, &tensors, nullptr, &options_);
  }

  void sizes_of_huge_limits() {
    limits_.max_num_seqs = bytes_.edge();
    limits_.max_total_q = bytes_.edge();
    limits_.max_kv_len = bytes_.edge();
    std::size_t schedule_bytes = 0;
    std::size_t scratch_bytes = 0;
    quire_workspace_sizes(kCpu, &spec_, &limits_, &options_, &schedule_bytes, &scratch_bytes);
  }

  Bytes bytes_;
  std::vector<Memory> memory_;
  quire_executor* executor_ = nullptr;
  quire_attention* attention_ = nullptr;
  quire_attention_options options_ = QUIRE_ATTENTION_OPTIONS_INIT;
  quire_attention_spec spec_ = QUIRE_ATTENTION_SPEC_INIT;
  quire_batch_limits limits_ = QUIRE_BATCH_LIMITS_INIT;
  quire_batch batch_ = QUIRE_BATCH_INIT;
  quire_attention_tensors tensors_ = QUIRE_ATTENTION_TENSORS_INIT;
  std::int32_t num_seqs_ = 0;
  std::int32_t total_q_ = 0;
  std::int64_t num_pages_ = 0;
  std::int32_t width_ = 0;
};

}  // namespace
}  // namespace quire::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  quire::fuzz::Problem(data, size).run();
  return 0;
}
