// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm90/tile_maps.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>

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

/// Components of a box.
std::int32_t box_components(DType dtype) {
  return kBoxRowBytes / static_cast<std::int32_t>(size_of(dtype));
}

CUtensorMapDataType element_of(DType dtype) {
  if (size_of(dtype) == 1) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

/// A map of elements of 16 or 8 bits, boxes of which have 128 bytes of a row, which lie behind one
/// another. What boxes miss in the second-level cache comes in 128 bytes: with 256 decode takes 8 %
/// longer.
/// @return False if there can be no such map.
template <std::size_t kOthers>
bool encode_map(CUtensorMap& map, const void* data, DType dtype, std::int32_t components,
                const std::array<Axis, kOthers>& others) {
  constexpr std::size_t kAxes = kOthers + 1;
  std::array<cuuint64_t, kAxes> sizes{static_cast<cuuint64_t>(components)};
  std::array<cuuint64_t, kOthers> strides{};
  const auto element_bytes = static_cast<cuuint64_t>(size_of(dtype));
  std::array<cuuint32_t, kAxes> box{static_cast<cuuint32_t>(box_components(dtype))};
  std::array<cuuint32_t, kAxes> steps{1};
  for (std::size_t i = 0; i < kOthers; ++i) {
    if (others[i].size <= 0) return false;
    sizes[i + 1] = static_cast<cuuint64_t>(others[i].size);
    // The stride of an axis of one element is not used, but must look like one.
    strides[i] =
        others[i].size > 1 ? static_cast<cuuint64_t>(others[i].stride) * element_bytes : 16;
    box[i + 1] = static_cast<cuuint32_t>(others[i].box);
    steps[i + 1] = 1;
  }
  return encode.load(std::memory_order_relaxed)(
             &map, element_of(dtype), static_cast<cuuint32_t>(kAxes), const_cast<void*>(data),
             sizes.data(), strides.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/// A box lies in shared memory as `Groups` has it: 128 bytes of 8 tokens, the next 128 of the
/// same tokens, …, and then those of the next 8 tokens. Its axes overlap: 8 tokens, two groups of 8 and
/// runs of 16 go over the same ones.
bool encode_pool(PoolMap& pool, const core::Pages& pages, const core::ProblemShape& shape,
                 std::int32_t head_dim) {
  constexpr std::int64_t kGroupTokens = 8;
  constexpr std::int64_t kMostRuns = std::numeric_limits<std::int32_t>::max();
  const std::int32_t components = box_components(shape.kv_dtype);
  const bool is_contiguous = shape.page_size == kContiguousKv;
  const std::int64_t run_stride = kBoxKeys * pages.token_stride;
  // The stride of an axis of one element may be anything.
  const std::int64_t head_stride = shape.num_kv_heads > 1 ? pages.head_stride : 0;
  const bool has_pages = !is_contiguous && pages.num_pages > 1;
  if (run_stride <= 0 || head_dim % components != 0 || head_stride % components != 0 ||
      (has_pages && pages.page_stride % run_stride != 0)) {
    return false;
  }
  const std::int64_t panels = head_dim / components;
  const std::int64_t panels_per_head = head_stride / components;
  const std::int64_t runs_per_page = has_pages ? pages.page_stride / run_stride : 0;
  const std::int64_t runs =
      (pages.num_pages - 1) * runs_per_page + (pages.num_tokens + kBoxKeys - 1) / kBoxKeys;
  const std::int64_t all_panels = (shape.num_kv_heads - 1) * panels_per_head + panels;
  if (runs > kMostRuns || all_panels > kMostRuns) return false;
  pool.runs_per_page = static_cast<std::int32_t>(runs_per_page);
  pool.panels_per_head = static_cast<std::int32_t>(panels_per_head);
  // A request of contiguous keys may begin in the middle of a run, so that its tokens reach into
  // the next one.
  const std::int64_t tokens = is_contiguous ? 2 * kBoxKeys : kBoxKeys;
  return encode_map<4>(
      pool.map, pages.data, shape.kv_dtype, components,
      {Axis{tokens, pages.token_stride, kGroupTokens},
       Axis{all_panels, components, static_cast<std::int32_t>(panels)},
       Axis{kBoxKeys / kGroupTokens, kGroupTokens * pages.token_stride, kBoxKeys / kGroupTokens},
       Axis{runs, run_stride}});
}

/// @param tokens  Of a box, each in the heads of a group.
template <typename Rows>
bool encode_rows(CUtensorMap& map, const Rows& rows, DType dtype, std::int64_t total,
                 const core::ProblemShape& shape, std::int32_t head_dim, std::int32_t tokens) {
  return encode_map<2>(map, rows.data, dtype, head_dim,
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
                encode_pool(maps.keys, tensors.k, shape, shape.head_dim_qk) &&
                encode_pool(maps.values, tensors.v, shape, shape.head_dim_vo);
  // A box that leaves rows of the tile as they were would let these say whether weights fit.
  maps.has_queries = tile_rows % shape.group_size == 0 &&
                     encode_rows(maps.queries, tensors.q, shape.q_dtype, tensors.total_q, shape,
                                 shape.head_dim_qk, tile_rows / shape.group_size);
  maps.has_results = size_of(shape.o_dtype) == 2 && kBoxResults % shape.group_size == 0 &&
                     encode_rows(maps.results, tensors.o, shape.o_dtype, tensors.total_q, shape,
                                 shape.head_dim_vo, kBoxResults / shape.group_size);
  return maps;
}

}  // namespace quire::cuda::sm90
