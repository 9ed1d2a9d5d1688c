// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warps of large units whose K and V are 8-bit codes. wgmma takes its operands from shared
/// memory, so that codes become fp16 on their way there: four warps copy a quarter of the keys of each
/// tile into shared memory, widen them and write them to the ring. Queries of bf16 become fp16, too.
///
/// All four do the same, since a warp costs the computing ones of its scheduler what it issues.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/queries.cuh"
#include "cuda/mma/row_loader.cuh"
#include "cuda/mma/tile_stream.cuh"
#include "cuda/mma/widen.hpp"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/row_widener.cuh"
#include "cuda/sm90/units.cuh"

namespace quire::cuda::sm90 {

/// A loading warp. What is asked for is a tile ahead of what is widened.
template <typename C>
class WideningLoader {
 public:
  __device__ WideningLoader(const AttendParams& params, typename C::Large& shared, int warp,
                            int lane)
      : params_(params), shared_(shared), warp_(warp), lane_(lane), loader_(lane), widener_(lane) {}

  __device__ __forceinline__ void run(const TileMaps& maps, const schedule::Overview& overview) {
    UnitSource<C> source(params_, maps, overview, shared_.besides.finder, shared_.fixed,
                         warp_ == kUnitWarp, lane_);
    source.put_next();
    UnitReader<C> units(shared_.fixed, lane_);
    Tiles tiles(params_, {&params_.tensors.k, &params_.tensors.v}, 1, units, lane_, true, warp_);
    TilePlace place = begin_tile(tiles, source);
    ask_for(tiles, place, kKeys);
    ask_for(tiles, place, kValues);
    if (!place.is_end) tiles.look_ahead();
#pragma unroll 1
    while (!place.is_end) {
      const bool has_keys = place.has_keys;
      const bool is_first = place.is_first;
      if (is_first) {
        hand_last_slot_over();
        ask_for_queries(tiles.unit());
      }
      tiles.advance();
      place = begin_tile(tiles, source);
      if (is_first) {
        wait_for_own_copies_but<2>();  // the values and the queries
      } else {
        wait_for_own_copies_but<1>();
      }
      widen(tiles, place, kKeys, has_keys);
      if (!place.is_end && !tiles.has_looked_ahead()) {  // pages come while values are widened
        hand_last_slot_over();
        tiles.look_ahead();
      }
      wait_for_own_copies_but<1>();
      if (is_first) hand_queries_over(has_keys);
      widen(tiles, place, kValues, has_keys);
    }
    hand_last_slot_over();
    wait_for_queries_empty();
    hand_over(shared_.fixed.queries_full[queries_.slot]);  // the end has none
    wait_for_own_copies();
  }

 private:
  using Layout = typename C::KeyLayout;
  static_assert(std::is_same_v<Layout, typename C::ValueLayout>);
  using StagedLayout = typename C::StagedLayout;
  using QueryLayout = typename C::QueryLayout;
  enum Cache : int { kKeys, kValues, kCaches };
  using Tiles = mma::TileStream<C::kTileKeys, mma::Direction::kDescending, UnitReader<C>,
                                kLoadingWarps, kCaches>;

  static constexpr int kOwnKeys = C::kTileKeys / kLoadingWarps;
  static constexpr int kOwnRuns = kOwnKeys / mma::kRunKeys;
  using Widener = RowWidener<typename C::Kv, StagedLayout, Layout, kOwnKeys>;

  /// What must be known of a tile to ask for its codes, found out at once.
  struct TilePlace {
    bool is_end;    // no tile
    bool has_keys;  // the unit sees some
    bool is_first;  // of its unit
    bool is_whole;  // all of the warp's keys are seen, and lie in runs
    const std::byte* runs[kCaches][kOwnRuns];
  };

  /// The stream has come to a tile. The unit behind a new one is looked for.
  __device__ __forceinline__ TilePlace begin_tile(const Tiles& tiles, UnitSource<C>& source) {
    const Unit& unit = tiles.unit();
    const int first_key = tiles.key() + warp_ * kOwnKeys;
    const mma::RowRange rows{unit.kv_begin - first_key, unit.kv_end - first_key};
    TilePlace place;
    place.is_end = unit.rows == 0;
    place.has_keys = rows.begin < rows.end;
    place.is_first = tiles.is_first_of_unit();
    place.is_whole = tiles.has_runs() && rows.has_all(kOwnKeys);
#pragma unroll
    for (const Cache cache : {kKeys, kValues}) {
#pragma unroll
      for (int run = 0; run < kOwnRuns; ++run) {
        place.runs[cache][run] =
            static_cast<const std::byte*>(pages_of(cache).data) +
            __shfl_sync(kAllLanes, tiles.offset_near(run, cache), tiles.lane_of(run));
      }
    }
    if (place.is_first && !place.is_end) {
      hand_last_slot_over();
      source.put_next();
    }
    return place;
  }

  [[nodiscard]] __device__ const core::Pages& pages_of(Cache cache) const {
    return cache == kKeys ? params_.tensors.k : params_.tensors.v;
  }
  /// Address of the warp's codes of a run.
  [[nodiscard]] __device__ std::uint32_t staged(Cache cache, int run = 0) const {
    return shared_address(shared_.besides.staged[cache]) +
           static_cast<std::uint32_t>((warp_ * kOwnKeys + run * mma::kRunKeys) *
                                      StagedLayout::kRowStride);
  }

  /// Begins to copy the warp's codes of the tile; those that are not seen become zeros.
  __device__ __forceinline__ void ask_for(const Tiles& tiles, const TilePlace& place,
                                          Cache cache) const {
    if (place.is_whole) {
#pragma unroll
      for (int run = 0; run < kOwnRuns; ++run) {
        loader_.load_run(staged(cache, run), place.runs[cache][run], pages_of(cache).token_stride,
                         {0, mma::kRunKeys});
      }
    } else if (place.has_keys) {
      copy_rows(tiles, place, cache);
    }
    commit_copies();
  }
  __device__ __forceinline__ void copy_rows(const Tiles& tiles, const TilePlace& place,
                                            Cache cache) const {
    const core::Pages& pages = pages_of(cache);
    const int first_key = tiles.key() + warp_ * kOwnKeys;
    const mma::RowRange rows{tiles.unit().kv_begin - first_key, tiles.unit().kv_end - first_key};
#pragma unroll
    for (int run = 0; run < kOwnRuns; ++run) {
      const int first = run * mma::kRunKeys;
      if (tiles.has_runs()) {
        loader_.load_run(staged(cache, run), place.runs[cache][run], pages.token_stride,
                         rows.from(first));
      } else {
        loader_.load_scattered(staged(cache, run), static_cast<const std::byte*>(pages.data),
                               tiles.offset_near(first, cache), first, rows.from(first));
      }
    }
  }

  /// Codes that have come become the next slot's fp16, if there are any, and those of the tile are
  /// asked for.
  __device__ __forceinline__ void widen(const Tiles& tiles, const TilePlace& place, Cache cache,
                                        bool has_keys) {
    __syncwarp();  // other lanes' codes, too
    typename Widener::Codes codes;
    widener_.read(codes, staged(cache));
    __syncwarp();  // before others come in their place
    ask_for(tiles, place, cache);
    hand_last_slot_over();
    if (!has_keys) return;
    barrier_wait(shared_address(&shared_.empty[at_.slot]), at_.parity ^ 1);
    widener_.write(shared_.slot(at_.slot) + Layout::below(warp_ * kOwnKeys), codes);
    at_.advance();
    has_slot_ = true;
  }
  /// The last slot is handed over while other things are under way, but before anything that the
  /// computing warps must do is waited for.
  __device__ __forceinline__ void hand_last_slot_over() {
    if (has_slot_) hand_over(shared_.full[at_.before().slot]);
    has_slot_ = false;
  }

  /// What the warp has written is there for products.
  __device__ __forceinline__ void hand_over(std::uint64_t& full) const {
    show_to_products();
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&full));
  }

  // --- queries -----------------------------------------------------------------------------------

  static constexpr int kOwnRows = C::kTileRows / kLoadingWarps;
  static_assert(kOwnRows == kWarpSize);

  __device__ __forceinline__ void wait_for_queries_empty() const {
    barrier_wait(shared_address(&shared_.fixed.queries_empty[queries_.slot]), queries_.parity ^ 1);
  }

  __device__ __forceinline__ void ask_for_queries(const Unit& unit) const {
    wait_for_queries_empty();
    if (!unit.sees_nothing()) {
      if (C::kWidensQueries && params_.shape.q_dtype == DType::kFloat8E4M3) {
        ask_for_query_rows<mma::FirstHalves<QueryLayout>>(unit, 1);
      } else {
        ask_for_query_rows<QueryLayout>(unit, C::kElementBytes);
      }
    }
    commit_copies();
  }
  template <typename RowLayout>
  __device__ __forceinline__ void ask_for_query_rows(const Unit& unit, int element_bytes) const {
    load_query_rows(params_, unit, element_bytes, warp_ * kOwnRows,
                    shared_address(shared_.fixed.queries[queries_.slot]),
                    mma::RowLoader<RowLayout>(lane_), lane_);
  }

  __device__ __forceinline__ void hand_queries_over(bool has_keys) {
    __syncwarp();
    if (has_keys) rewrite_queries();
    hand_over(shared_.fixed.queries_full[queries_.slot]);
    queries_.advance();
  }

  static constexpr int kLanesPerRow = 8;
  static constexpr int kRowsAtOnce = kWarpSize / kLanesPerRow;
  static constexpr int kQueryChunks = QueryLayout::kPanels;  // of a row that a lane has

  /// As fp16, in place.
  __device__ __forceinline__ void rewrite_queries() const {
    const DType dtype = params_.shape.q_dtype;
#pragma unroll 1
    for (int first = 0; first < kOwnRows; first += kRowsAtOnce) {
      const int row = warp_ * kOwnRows + first + lane_ / kLanesPerRow;
      float factor = 1.0F;
      if (C::kWidensQueries && dtype == DType::kFloat8E4M3) {
        if constexpr (C::kWidensQueries) widen_row(row);
      } else if (dtype == DType::kBFloat16) {
        factor = rewrite_row(row);
      }
      if (lane_ % kLanesPerRow == 0) {
        shared_.fixed.query_factors[queries_.slot][row] = __float2bfloat16_rn(factor);
      }
    }
  }

  /// Codes in the first half of a row that is one panel.
  __device__ __forceinline__ void widen_row(int row) const {
    static_assert(!C::kWidensQueries || QueryLayout::kPanels == 1);
    using Widen = mma::Widen<typename C::Kv, mma::Order::kNeighbours>;
    const int own = lane_ % kLanesPerRow;
    const std::uint32_t at =
        QueryLayout::row(shared_address(shared_.fixed.queries[queries_.slot]), row);
    const uint4 codes = load_shared(QueryLayout::chunk(at, own / 2));
    __syncwarp();
    const mma::Pairs a = Widen::pairs(own % 2 == 0 ? codes.x : codes.z);
    const mma::Pairs b = Widen::pairs(own % 2 == 0 ? codes.y : codes.w);
    store_shared(QueryLayout::chunk(at, own), make_uint4(a.first, a.second, b.first, b.second));
  }

  __device__ __forceinline__ float rewrite_row(int row) const {
    const std::uint32_t own = QueryLayout::chunk(
        QueryLayout::row(shared_address(shared_.fixed.queries[queries_.slot]), row),
        lane_ % kLanesPerRow);
    uint4 chunks[kQueryChunks];
    std::uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kQueryChunks; ++i) {
      chunks[i] = load_shared(own + static_cast<std::uint32_t>(i * QueryLayout::kPanelBytes));
      for (const std::uint32_t pair : {chunks[i].x, chunks[i].y, chunks[i].z, chunks[i].w}) {
        largest = max(largest, max(pair & 0x7fffU, pair >> 16 & 0x7fffU));
      }
    }
#pragma unroll
    for (int distance = 1; distance < kLanesPerRow; distance *= 2) {
      largest = max(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    }
    const mma::RowToHalf to_half(largest);
#pragma unroll
    for (int i = 0; i < kQueryChunks; ++i) {
      store_shared(own + static_cast<std::uint32_t>(i * QueryLayout::kPanelBytes),
                   make_uint4(to_half(chunks[i].x), to_half(chunks[i].y), to_half(chunks[i].z),
                              to_half(chunks[i].w)));
    }
    return to_half.factor();
  }

  const AttendParams& params_;
  typename C::Large& shared_;
  const int warp_;
  const int lane_;
  const mma::RowLoader<StagedLayout> loader_;
  const Widener widener_;
  mma::RingPosition<C::kSlots> at_;
  bool has_slot_ = false;  // the one before is not handed over
  mma::RingPosition<C::kQueryBuffers> queries_;
};

}  // namespace quire::cuda::sm90
