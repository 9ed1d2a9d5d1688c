// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/tile_maps.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "cuda/runtime.hpp"

namespace quire::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, found by `prepare_tile_maps`: the library is not linked with the driver.
std::atomic<Encode> encode = nullptr;

/// @return False if there can be no such map.
bool encode_map(CUtensorMap& map, const core::Pages& pages, const core::ProblemShape& shape,
                std::int32_t head_dim) {
  const auto bytes = static_cast<cuuint64_t>(size_of(shape.kv_dtype));
  const std::array<cuuint64_t, 4> sizes = {
      static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(pages.num_tokens),
      static_cast<cuuint64_t>(shape.num_kv_heads), static_cast<cuuint64_t>(pages.num_pages)};
  // The stride of an axis of one element is not used, but must look like one.
  const auto stride = [&](std::int64_t elements, cuuint64_t size) {
    return size > 1 ? static_cast<cuuint64_t>(elements) * bytes : cuuint64_t{16};
  };
  const std::array<cuuint64_t, 3> strides = {stride(pages.token_stride, sizes[1]),
                                             stride(pages.head_stride, sizes[2]),
                                             stride(pages.page_stride, sizes[3])};
  const std::array<cuuint32_t, 4> box = {kBoxComponents, kBoxKeys, 1, 1};
  const std::array<cuuint32_t, 4> steps = {1, 1, 1, 1};
  if (std::any_of(sizes.begin(), sizes.end(), [](cuuint64_t size) { return size == 0; })) {
    return false;
  }
  return encode.load(std::memory_order_relaxed)(
             &map,
             shape.kv_dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(pages.data), sizes.data(),
             strides.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

void prepare_tile_maps() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kSince = 12000;
  throw_if_error("attention", cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               kSince, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) {
    throw Error(ErrorCode::kDeviceError,
                "[attention] the driver has no cuTensorMapEncodeTiled; expected one of CUDA 12 or "
                "newer");
  }
  encode.store(reinterpret_cast<Encode>(function), std::memory_order_relaxed);
}

TileMaps make_tile_maps(const core::ProblemShape& shape,
                        const core::LayerTensors& tensors) noexcept {
  TileMaps maps;
  maps.are_valid = shape.page_size % kBoxKeys == 0 &&
                   encode_map(maps.keys, tensors.k, shape, shape.head_dim_qk) &&
                   encode_map(maps.values, tensors.v, shape, shape.head_dim_vo);
  return maps;
}

}  // namespace quire::cuda::sm90
