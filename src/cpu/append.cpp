// SPDX-License-Identifier: Apache-2.0
// New keys and values into their pages. All slots are checked before the first byte is written.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "core/backend.hpp"
#include "cpu/check_batch.hpp"
#include "cpu/narrow_rows.hpp"
#include "cpu/tier.hpp"
#include "schedule/sequence.hpp"

namespace quire::cpu {
namespace {

/// Rows that a task writes, and bytes below which the caller writes alone.
constexpr std::int64_t kRowsPerTask = 16;
constexpr std::int64_t kSmallBytes = 128 * 1024;
/// So many rows before one is written its place is asked for: pages are anywhere in memory.
constexpr std::size_t kRowsAhead = 4;
constexpr std::int64_t kLineBytes = 64;

/// Where row `row` goes: page · page_size + offset, or negative: nowhere.
class Slots {
 public:
  Slots(const core::BatchArrays& batch, const core::AppendArrays& arrays)
      : batch_(batch), arrays_(arrays) {
    shape_.page_size = arrays.page_size;
  }

  /// Calls `put(row, slot)` for rows [first, last) that go somewhere.
  template <typename Put>
  void for_each(std::int64_t first, std::int64_t last, const Put& put) const {
    if (arrays_.slot_mapping != nullptr) {
      for (std::int64_t row = first; row < last; ++row) {
        if (arrays_.slot_mapping[row] >= 0) put(row, arrays_.slot_mapping[row]);
      }
      return;
    }
    const std::int32_t* end = batch_.qo_indptr + batch_.num_seqs + 1;
    auto seq = static_cast<std::int32_t>(std::upper_bound(batch_.qo_indptr, end, first) -
                                         batch_.qo_indptr - 1);
    for (std::int64_t row = first; seq < batch_.num_seqs && row < last; ++seq) {
      const schedule::Lengths lengths = schedule::lengths_of(shape_, batch_, seq);
      const std::int64_t rows_end = std::min<std::int64_t>(last, batch_.qo_indptr[seq + 1]);
      for (; row < rows_end; ++row) {
        const auto query = static_cast<std::int32_t>(row - batch_.qo_indptr[seq]);
        const std::int32_t position = lengths.position(query);
        if (position >= 0) put(row, derived(seq, position));
      }
    }
  }

  [[nodiscard]] const core::ProblemShape& shape() const { return shape_; }

 private:
  [[nodiscard]] std::int64_t derived(std::int32_t seq, std::int32_t position) const {
    const std::int64_t page = schedule::page_ids(batch_, seq)[position / arrays_.page_size];
    return page * arrays_.page_size + position % arrays_.page_size;
  }

  const core::BatchArrays& batch_;
  const core::AppendArrays& arrays_;
  core::ProblemShape shape_;
};

Status check_given_slots(const CheckContext& context, const core::AppendArrays& arrays) {
  const std::int64_t end = arrays.k_cache.num_pages * arrays.page_size;
  for (std::int64_t row = 0; row < arrays.num_rows; ++row) {
    const std::int64_t slot = arrays.slot_mapping[row];
    if (slot < end) continue;
    CheckRecord found;
    found.what = static_cast<std::int32_t>(CheckedItem::kSlot);
    found.position = row;
    found.value = slot;
    found.bound = end;
    return context.refuse(
        found, fmt::format("slot_mapping[{}]: expected a slot below {} ({} pages of {} tokens) or "
                           "a negative one, got {}",
                           row, end, arrays.k_cache.num_pages, arrays.page_size, slot));
  }
  return {};
}

Status check_derived_slots(const CheckContext& context, const core::BatchArrays& batch,
                           const core::AppendArrays& arrays, const core::ProblemShape& shape) {
  const BatchLimits limits{batch.num_seqs, INT32_MAX, INT32_MAX};
  Status status = check_batch(context, shape, limits, batch);
  if (status.ok()) status = check_rows(context, batch, "k", arrays.num_rows);
  for (std::int32_t seq = 0; status.ok() && seq < batch.num_seqs; ++seq) {
    const schedule::Lengths lengths = schedule::lengths_of(shape, batch, seq);
    const std::int32_t begin = std::max(0, lengths.position(0));
    if (begin >= lengths.kv_len) continue;
    status =
        check_pages(context, shape, batch, seq, begin, lengths.kv_len, arrays.k_cache.num_pages);
  }
  return status;
}

/// K or V on its way: rows of new elements, pages of the cache, the row's length and scale.
struct Stream {
  core::Rows from;
  core::MutablePages to;
  std::int32_t head_dim = 0;
  const float* scale = nullptr;
  std::int32_t scale_head_stride = 0;
  core::MutableTokenScales token_scale;
};

class Writer {
 public:
  Writer(const Tier& tier, const core::AppendArrays& arrays)
      : tier_(tier),
        arrays_(arrays),
        k_{arrays.k,
           arrays.k_cache,
           arrays.head_dim_qk,
           arrays.k_scale,
           arrays.k_scale_head_stride,
           arrays.k_token_scale},
        v_{arrays.v,
           arrays.v_cache,
           arrays.head_dim_vo,
           arrays.v_scale,
           arrays.v_scale_head_stride,
           arrays.v_token_scale} {}

  void write(std::int64_t row, std::int64_t slot) const {
    write(k_, row, slot);
    write(v_, row, slot);
  }
  void ask_for(std::int64_t slot) const {
    ask_for(k_, slot);
    ask_for(v_, slot);
  }

 private:
  void ask_for(const Stream& stream, std::int64_t slot) const {
    const std::int64_t page = slot / arrays_.page_size;
    const std::int64_t token = slot % arrays_.page_size;
    const auto size = static_cast<std::int64_t>(size_of(arrays_.cache_dtype));
    const auto* const to = static_cast<const std::byte*>(stream.to.data) +
                           (page * stream.to.page_stride + token * stream.to.token_stride) * size;
    for (std::int64_t head = 0; head < arrays_.num_kv_heads; ++head) {
      for (std::int64_t at = 0; at < stream.head_dim * size; at += kLineBytes) {
        __builtin_prefetch(to + head * stream.to.head_stride * size + at, 1);
      }
    }
  }

  void write(const Stream& stream, std::int64_t row, std::int64_t slot) const {
    const std::int64_t page = slot / arrays_.page_size;
    const std::int64_t token = slot % arrays_.page_size;
    const auto new_size = static_cast<std::int64_t>(size_of(arrays_.new_dtype));
    const auto cache_size = static_cast<std::int64_t>(size_of(arrays_.cache_dtype));
    for (std::int64_t head = 0; head < arrays_.num_kv_heads; ++head) {
      const auto* from =
          static_cast<const std::byte*>(stream.from.data) +
          (row * stream.from.token_stride + head * stream.from.head_stride) * new_size;
      auto* to = static_cast<std::byte*>(stream.to.data) +
                 (page * stream.to.page_stride + token * stream.to.token_stride +
                  head * stream.to.head_stride) *
                     cache_size;
      float scale = stream.scale != nullptr ? stream.scale[head * stream.scale_head_stride] : 1.0F;
      if (!core::is_narrow(arrays_.cache_dtype)) {
        convert(to, from, stream.head_dim, scale);
        continue;
      }
      if (const core::MutableTokenScales& scales = stream.token_scale; scales.data != nullptr) {
        scale = find_row_scale(from, arrays_.new_dtype, stream.head_dim, arrays_.cache_dtype);
        scales.data[page * scales.page_stride + head * scales.head_stride +
                    token * scales.token_stride] = scale;
      }
      quantise_row(to, arrays_.cache_dtype, from, arrays_.new_dtype, stream.head_dim, scale);
    }
  }

  /// to = from / scale, by way of fp32.
  void convert(std::byte* to, const std::byte* from, std::int64_t n, float scale) const {
    if (arrays_.new_dtype == arrays_.cache_dtype && scale == 1.0F) {
      std::memcpy(to, from, static_cast<std::size_t>(n) * size_of(arrays_.new_dtype));
      return;
    }
    constexpr std::int64_t kChunk = 256;
    float values[kChunk];
    for (std::int64_t at = 0; at < n; at += kChunk) {
      const std::int64_t count = std::min(kChunk, n - at);
      std::fill_n(values, count, 0.0F);
      tier_.add_row(values, from + at * static_cast<std::int64_t>(size_of(arrays_.new_dtype)),
                    arrays_.new_dtype, count, 1.0F);
      if (scale != 1.0F) std::for_each_n(values, count, [&](float& value) { value /= scale; });
      tier_.store_row(to + at * static_cast<std::int64_t>(size_of(arrays_.cache_dtype)),
                      arrays_.cache_dtype, values, count, 1.0F);
    }
  }

  const Tier& tier_;
  const core::AppendArrays& arrays_;
  Stream k_;
  Stream v_;
};

void write_all(const Slots& slots, const core::AppendArrays& arrays, Executor& executor) {
  struct Context {
    const Slots& slots;
    Writer writer;
    std::int64_t num_rows;
  } context{slots, Writer(row_tier(), arrays), arrays.num_rows};
  const auto write = [](void* opaque, std::int32_t task) noexcept {
    const auto& call = *static_cast<const Context*>(opaque);
    struct Place {
      std::int64_t row;
      std::int64_t slot;
    };
    std::array<Place, kRowsPerTask> places;
    std::size_t count = 0;
    const std::int64_t first = task * kRowsPerTask;
    call.slots.for_each(
        first, std::min(first + kRowsPerTask, call.num_rows),
        [&](std::int64_t row, std::int64_t slot) { places[count++] = {row, slot}; });
    const auto ask_for = [&](std::size_t i) {
      // The machine itself asks for what lies behind the row before.
      const bool is_behind = i > 0 && places[i].slot == places[i - 1].slot + 1;
      if (!is_behind) call.writer.ask_for(places[i].slot);
    };
    for (std::size_t i = 0; i < std::min(kRowsAhead, count); ++i) ask_for(i);
    for (std::size_t i = 0; i < count; ++i) {
      if (i + kRowsAhead < count) ask_for(i + kRowsAhead);
      call.writer.write(places[i].row, places[i].slot);
    }
  };
  const auto tasks = static_cast<std::int32_t>((arrays.num_rows + kRowsPerTask - 1) / kRowsPerTask);
  const std::int64_t bytes = arrays.num_rows * arrays.num_kv_heads *
                             (arrays.head_dim_qk + arrays.head_dim_vo) *
                             static_cast<std::int64_t>(size_of(arrays.new_dtype));
  if (bytes > kSmallBytes) {
    executor.parallel(tasks, write, &context);
  } else {
    for (std::int32_t task = 0; task < tasks; ++task) write(&context, task);
  }
}

}  // namespace

Status append(const core::BatchArrays& batch, const core::AppendArrays& arrays,
              const CallOptions& call, Executor* executor) noexcept {
  try {
    const CheckContext context{"append", call.check};
    const Slots slots(batch, arrays);
    Status status = arrays.slot_mapping != nullptr
                        ? check_given_slots(context, arrays)
                        : check_derived_slots(context, batch, arrays, slots.shape());
    if (status.ok()) write_all(slots, arrays, *executor);
    return status;
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, {}};
  }
}

}  // namespace quire::cpu
