// SPDX-License-Identifier: Apache-2.0
// New keys and values into pages of 8 bits: a block per row, a warp per head.
//
//   k, v [num_rows, num_kv_heads, D]  ->  k_cache, v_cache as codes of k / scale, and, if scales are
//   computed, token scales [page, head, token]
//
// The codes are those of `core/narrow_formats.hpp`, as on the CPU.
#include "cuda/append/narrow.hpp"

#include <cstdint>

#include "core/narrow_formats.hpp"
#include "cuda/common/convert.cuh"
#include "cuda/common/ptx.cuh"

namespace quire::cuda {
namespace {

using namespace append_rows;

constexpr int kWarps = kThreads / kWarpSize;

/// Codes of `kCount` numbers divided by `scale`, in a format that run time knows.
template <typename New, int kCount>
__device__ Vector<std::uint8_t, kCount> codes_of(DType dtype, const Vector<New, kCount>& values,
                                                 float scale) {
  Vector<std::uint8_t, kCount> codes;
  const auto convert = [&](auto code) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      from_float(to_float(values.elements[i]) / scale, code);
      codes.elements[i] = *reinterpret_cast<const std::uint8_t*>(&code);
    }
  };
  if (dtype == DType::kInt8) {
    convert(core::Int8{});
  } else if (dtype == DType::kFloat8E4M3) {
    convert(core::Float8E4M3{});
  } else {
    convert(core::Float8E5M2{});
  }
  return codes;
}

/// One head of a row of K or V, in one warp.
template <typename New, int kCount>
class HeadWriter {
 public:
  __device__ HeadWriter(const core::AppendArrays& arrays, const Stream& stream, std::int64_t row,
                        std::int64_t page, std::int64_t token, std::int32_t head, int lane)
      : dtype_(arrays.cache_dtype),
        columns_(stream.head_dim),
        lane_(lane),
        from_(static_cast<const New*>(stream.from.data) + row * stream.from.token_stride +
              head * stream.from.head_stride),
        to_(static_cast<std::uint8_t*>(stream.to.data) + page * stream.to.page_stride +
            token * stream.to.token_stride + head * stream.to.head_stride) {}

  /// @return The scale that makes the largest magnitude the largest number, to all lanes.
  __device__ float find_scale() const {
    float largest = 0.0F;
    for (std::int32_t column = lane_ * kCount; column < columns_; column += kStep) {
      const auto values = load(column);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        largest = fmaxf(largest, fabsf(to_float(values.elements[i])));
      }
    }
    return core::scale_of_row(warp_max(largest), dtype_);
  }

  __device__ void write(float scale) const {
#pragma unroll 1
    for (std::int32_t column = lane_ * kCount; column < columns_; column += kStep) {
      *reinterpret_cast<Vector<std::uint8_t, kCount>*>(to_ + column) =
          codes_of(dtype_, load(column), scale);
    }
  }

 private:
  static constexpr int kStep = kWarpSize * kCount;

  __device__ Vector<New, kCount> load(std::int32_t column) const {
    return *reinterpret_cast<const Vector<New, kCount>*>(from_ + column);
  }

  const DType dtype_;
  const std::int32_t columns_;
  const int lane_;
  const New* const from_;
  std::uint8_t* const to_;
};

template <typename New, int kCount, bool kComputesScales>
__device__ void write_row(const core::AppendArrays& arrays, const Stream& stream, std::int64_t row,
                          std::int64_t page, std::int64_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (auto head = static_cast<std::int32_t>(threadIdx.x) / kWarpSize; head < arrays.num_kv_heads;
       head += kWarps) {
    const HeadWriter<New, kCount> writer(arrays, stream, row, page, token, head, lane);
    if constexpr (kComputesScales) {
      const float scale = writer.find_scale();
      const core::MutableTokenScales& to = stream.token_scale;
      if (lane == 0) {
        to.data[page * to.page_stride + head * to.head_stride + token * to.token_stride] = scale;
      }
      writer.write(scale);
    } else {
      writer.write(stream.given_scale(head));
    }
  }
}

template <typename New, int kCount, bool kComputesScales>
__global__ void __launch_bounds__(kThreads)
    append_narrow_kernel(const __grid_constant__ AppendParams params) {
  if (params.check != nullptr && params.check->what != 0) return;
  const core::AppendArrays& arrays = params.arrays;
  const std::int64_t row = blockIdx.x;
  const std::int64_t slot = slot_of(params, row);
  if (slot < 0) return;
  const std::int64_t page = slot / arrays.page_size;
  const std::int64_t token = slot % arrays.page_size;
  write_row<New, kCount, kComputesScales>(arrays, keys_of(arrays), row, page, token);
  write_row<New, kCount, kComputesScales>(arrays, values_of(arrays), row, page, token);
}

template <typename New>
Kernel kernel_of(bool computes_scales, bool vectors) {
  if (computes_scales) {
    return vectors ? append_narrow_kernel<New, kVector, true> : append_narrow_kernel<New, 1, true>;
  }
  return vectors ? append_narrow_kernel<New, kVector, false> : append_narrow_kernel<New, 1, false>;
}

}  // namespace

Kernel narrow_append_kernel(const core::AppendArrays& arrays, bool vectors) {
  const bool computes_scales = arrays.k_token_scale.data != nullptr;
  if (arrays.new_dtype == DType::kFloat32) return kernel_of<float>(computes_scales, vectors);
  return arrays.new_dtype == DType::kFloat16 ? kernel_of<__half>(computes_scales, vectors)
                                             : kernel_of<__nv_bfloat16>(computes_scales, vectors);
}

}  // namespace quire::cuda
