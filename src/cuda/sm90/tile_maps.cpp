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

/// A dimension of a tensor, and of the boxes of it.
struct Axis {
  std::int64_t size = 0;
  std::int64_t stride = 0;  // in elements
  std::int32_t box = 1;
};

/// A map of 16-bit elements; components lie behind one another.
/// @return False if there can be no such map.
template <std::size_t kOthers>
bool encode_map(CUtensorMap& map, const void* data, DType dtype, std::int32_t head_dim,
                const std::array<Axis, kOthers>& others) {
  constexpr std::size_t kAxes = kOthers + 1;
  std::array<cuuint64_t, kAxes> sizes{static_cast<cuuint64_t>(head_dim)};
  std::array<cuuint64_t, kOthers> strides{};
  std::array<cuuint32_t, kAxes> box{kBoxComponents};
  std::array<cuuint32_t, kAxes> steps{1};
  for (std::size_t i = 0; i < kOthers; ++i) {
    if (others[i].size <= 0) return false;
    sizes[i + 1] = static_cast<cuuint64_t>(others[i].size);
    // The stride of an axis of one element is not used, but must look like one.
    strides[i] = others[i].size > 1 ? static_cast<cuuint64_t>(others[i].stride) * 2 : 16;
    box[i + 1] = static_cast<cuuint32_t>(others[i].box);
    steps[i + 1] = 1;
  }
  return encode.load(std::memory_order_relaxed)(
             &map,
             dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             static_cast<cuuint32_t>(kAxes), const_cast<void*>(data), sizes.data(), strides.data(),
             box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool encode_pages(CUtensorMap& map, const core::Pages& pages, const core::ProblemShape& shape,
                  std::int32_t head_dim) {
  return encode_map<3>(
      map, pages.data, shape.kv_dtype, head_dim,
      {Axis{pages.num_tokens, pages.token_stride, kBoxKeys},
       Axis{shape.num_kv_heads, pages.head_stride}, Axis{pages.num_pages, pages.page_stride}});
}

/// @param tokens  Of a box, each in the heads of a group.
template <typename Rows>
bool encode_rows(CUtensorMap& map, const Rows& rows, std::int64_t total,
                 const core::ProblemShape& shape, std::int32_t head_dim, std::int32_t tokens) {
  return encode_map<2>(map, rows.data, shape.q_dtype, head_dim,
                       {Axis{shape.num_qo_heads, rows.head_stride, shape.group_size},
                        Axis{total, rows.token_stride, tokens}});
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

TileMaps make_tile_maps(const core::ProblemShape& shape, const core::LayerTensors& tensors,
                        std::int32_t tile_rows) noexcept {
  TileMaps maps;
  maps.has_kv = shape.page_size % kBoxKeys == 0 &&
                encode_pages(maps.keys, tensors.k, shape, shape.head_dim_qk) &&
                encode_pages(maps.values, tensors.v, shape, shape.head_dim_vo);
  // A box that leaves rows of the tile as they were would let these say whether weights fit.
  maps.has_queries = tile_rows % shape.group_size == 0 &&
                     encode_rows(maps.queries, tensors.q, tensors.total_q, shape, shape.head_dim_qk,
                                 tile_rows / shape.group_size);
  maps.has_results = shape.o_dtype == shape.q_dtype && kBoxResults % shape.group_size == 0 &&
                     encode_rows(maps.results, tensors.o, tensors.total_q, shape, shape.head_dim_vo,
                                 kBoxResults / shape.group_size);
  return maps;
}

}  // namespace quire::cuda::sm90
