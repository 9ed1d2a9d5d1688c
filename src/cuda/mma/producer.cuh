// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warps, one for K, one for V and q: they walk the block's tiles ahead of the computing
/// warps and keep the ring full across units.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/config.cuh"
#include "cuda/mma/row_loader.cuh"
#include "cuda/mma/tile_stream.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::mma {

/// For loading warps that copy tiles row by row only.
class NoBoxes {
 public:
  /// Copies what it can of a tile after `wait_for_room()`.
  /// @param full  A barrier that is told of it.
  /// @return A bit for each run of 16 keys of which this is so.
  template <typename Tiles, typename Wait>
  __device__ std::uint32_t copy(const Tiles& /*tiles*/, RowRange /*rows*/, std::uint32_t /*to*/,
                                std::uint32_t /*full*/, const Wait& wait_for_room) const {
    wait_for_room();
    return 0;
  }
  static constexpr std::uint32_t kAllRuns = 1U << kTileKeys / kRunKeys;  // never
  static constexpr bool kAreRuns = false;
  /// Where there are no large units, a request of many rows is small ones that have the same keys.
  static constexpr Reuse kReuse = Reuse::kSome;
  [[nodiscard]] __device__ bool are_there() const { return false; }
};

/// A loading warp. The one of V also hands each unit and its queries over: as soon as there is room
/// for them, and at the latest when the ring holds nothing but this unit, since the computing warps
/// wait for queries then.
/// @tparam Layout  Of the tiles that it loads.
/// @tparam Boxes   `NoBoxes`, or what copies whole runs of keys in another way.
template <typename C, typename Layout, typename Boxes>
class Producer {
 public:
  __device__ Producer(const AttendParams& params, typename C::Shared& shared, const Boxes& boxes,
                      bool loads_keys, int lane)
      : params_(params),
        boxes_(boxes),
        shared_(shared),
        cache_(loads_keys ? params.tensors.k : params.tensors.v),
        loads_keys_(loads_keys),
        lane_(lane),
        rows_(lane) {
    position_.slot = loads_keys ? 0 : 1;
  }

  __device__ void run(std::int32_t share) {
    note(params_, Activity::kFindUnits);
    UnitWalk units(params_, share);
    Tiles tiles(params_, {&cache_}, kElementBytes, units, lane_, !Boxes::kAreRuns);
#pragma unroll 1
    while (tiles.unit().rows > 0) {
      // What comes next is looked for while there is no room for more, since to find a unit takes
      // long; but page ids of scattered keys, which every tile needs, come beside the tile before.
      if (!tiles.has_runs()) tiles.look_ahead();
      if (!load_whole_tiles(tiles)) load_and_hand_over(tiles);
      note(params_, Activity::kLookAhead);
      if (tiles.is_last_of_stretch() || !has_room()) tiles.look_ahead();
      tiles.advance();
    }
    if (!loads_keys_) hand_over_end();
    note(params_, Activity::kAwaitCopies);
    wait_for_own_copies();
  }

 private:
  using Tiles = TileStream<kTileKeys, Direction::kAscending, UnitWalk>;
  static constexpr int kHandedOver = -1;
  static constexpr std::int64_t kNoScaleRuns = -1;
  static constexpr int kChunkBytes = 16;
  static constexpr int kScalesAtOnce = kChunkBytes / static_cast<int>(sizeof(float));
  static constexpr int kElementBytes = C::kKvElementBytes;
  static constexpr int kQueryElementBytes = sizeof(typename C::Element);

  /// The unit goes first, if there is room for its queries, else behind the tile.
  __device__ void load_and_hand_over(const Tiles& tiles) {
    if (tiles.is_first_of_unit()) tiles_ahead_ = 0;
#pragma unroll 1
    for (bool is_loaded = false;; is_loaded = true) {
      if (!loads_keys_ && tiles_ahead_ != kHandedOver) {
        // The next V would take the place of the unit's first K.
        const bool is_full = 2 * tiles_ahead_ + 1 >= C::kSlots;
        const bool is_due = is_loaded && (tiles.is_last_of_unit() || is_full);
        hand_over(tiles.unit(), is_due);
      }
      if (is_loaded) return;
      if (!tiles.unit().sees_nothing()) load(tiles);
      if (tiles_ahead_ != kHandedOver) ++tiles_ahead_;
    }
  }

  /// Loads tiles of 8 bits of which the unit sees all keys, one after another in a few instructions each:
  /// they come twice as fast as those of 16 bits, for which this code would only have to be fetched.
  /// Ends before the last tile of the stretch, and when there is time to look for the next one.
  /// @return Whether there were any. The last of them is the current tile then.
  __device__ __forceinline__ bool load_whole_tiles(Tiles& tiles) {
    if constexpr (!C::kHasLoopOfTiles) {
      return false;
    } else {
      if (!(boxes_.are_there() || (!Boxes::kAreRuns && tiles.has_runs()))) return false;
      if (tiles.is_first_of_unit()) return false;
      if (!loads_keys_ && tiles_ahead_ != kHandedOver) return false;
      constexpr int kRunsOfTile = kTileKeys / kRunKeys;
      const int known =
          (kWarpSize - tiles.lane_of(0)) / kRunsOfTile;  // tiles whose runs lanes know
      const int count = min(tiles.tiles_before_last(), known);
      if (count <= 0) return false;
      if constexpr (Boxes::kAreRuns) {
        const auto places = boxes_.places_near(tiles);
        load_tiles(tiles, count, [&](std::uint32_t to, std::uint32_t full) {
          boxes_.copy_whole(places, tiles.lane_of(0), to, full);
          barrier_arrive(full);
        });
      } else {
        const std::int64_t offset = tiles.offset_near(0);
        const std::int64_t scales = scales_near(tiles);
        load_tiles(tiles, count, [&](std::uint32_t to, std::uint32_t full) {
          copy_whole(tiles, offset, scales, to);
          barrier_arrive_after_copies(full);
        });
      }
      return true;
    }
  }

  /// @param count  At most.
  /// @param copy   (address of a slot, its barrier): copies the current tile.
  template <typename Copy>
  __device__ __forceinline__ void load_tiles(Tiles& tiles, int count, const Copy& copy) {
#pragma unroll 1
    while (true) {
      note(params_, Activity::kAwaitSlot, tiles.key());
      barrier_wait(shared_address(&shared_.empty[position_.slot]), position_.parity ^ 1);
      note(params_, Activity::kIssueCopies, tiles.key());
      copy(shared_address(shared_.ring[position_.slot]),
           shared_address(&shared_.full[position_.slot]));
      position_.advance(2);
      if (--count == 0 || (!tiles.has_looked_ahead() && !has_room())) return;
      tiles.skip();
    }
  }

  /// Row by row.
  /// @param offset  In bytes, of this lane's run.
  /// @param scales  `scales_near`.
  __device__ __forceinline__ void copy_whole(const Tiles& tiles, std::int64_t offset,
                                             std::int64_t scales, std::uint32_t to) const {
    const auto* const base = static_cast<const std::byte*>(cache_.data);
#pragma unroll
    for (int first = 0; first < kTileKeys; first += kRunKeys) {
      const int run = tiles.lane_of(first / kRunKeys);
      rows_.load_whole_run(to + Layout::below(first), base + __shfl_sync(kAllLanes, offset, run),
                           cache_.token_stride * kElementBytes);
    }
    if constexpr (C::kHasTokenScales) {
      if (scales == kNoScaleRuns) {
        load_token_scales(tiles, {0, kTileKeys}, to);
        return;
      }
      // Half of the lanes copy scales of K, half of V, four tokens each.
      constexpr int kLanesPerRun = kRunKeys / kScalesAtOnce;
      const bool is_of_keys = lane_ < kWarpSize / 2;
      const int part = lane_ % (kWarpSize / 2);
      const float* const base_of_scales =
          is_of_keys ? params_.tensors.k_token_scale.data : params_.tensors.v_token_scale.data;
      const int run = tiles.lane_of(part / kLanesPerRun);
      const std::int64_t at =
          __shfl_sync(kAllLanes, scales, run) + part % kLanesPerRun * kScalesAtOnce;
      copy_async(to + static_cast<std::uint32_t>(C::kScalesBegin + lane_ * kChunkBytes),
                 base_of_scales + at, true);
    }
  }

  /// Where the scales of this lane's run begin, of K and of V alike, if those of a run can be copied four
  /// at a time; else `kNoScaleRuns`.
  __device__ __forceinline__ std::int64_t scales_near(const Tiles& tiles) const {
    if constexpr (C::kHasTokenScales) {
      const core::TokenScales& k = params_.tensors.k_token_scale;
      const core::TokenScales& v = params_.tensors.v_token_scale;
      const auto is_whole = [](std::int64_t elements) { return elements % kScalesAtOnce == 0; };
      const auto are_runs = [&](const core::TokenScales& scales) {
        return reinterpret_cast<std::uintptr_t>(scales.data) % kChunkBytes == 0 &&
               is_whole(scales.page_stride) && is_whole(scales.head_stride) &&
               scales.token_stride == 1;
      };
      if (!loads_keys_ || k.data == nullptr || params_.shape.page_size == kContiguousKv ||
          !are_runs(k) || !are_runs(v) || k.page_stride != v.page_stride ||
          k.head_stride != v.head_stride) {
        return kNoScaleRuns;
      }
      const std::int32_t key = tiles.key_of_own_run(tiles.own_run_near());
      const std::int32_t token = params_.page_size.remainder(key, params_.page_size.quotient(key));
      return tiles.page_near(0) * k.page_stride + tiles.unit().kv_head_begin * k.head_stride +
             token;
    }
    return kNoScaleRuns;
  }

  /// Whether the next tile can be loaded at once.
  __device__ bool has_room() const {
    return __all_sync(kAllLanes, barrier_is_over(shared_address(&shared_.empty[position_.slot]),
                                                 position_.parity ^ 1));
  }

  __device__ void load(const Tiles& tiles) {
    const RowRange rows{tiles.unit().kv_begin - tiles.key(), tiles.unit().kv_end - tiles.key()};
    const std::uint32_t to = shared_address(shared_.ring[position_.slot]);
    const std::uint32_t full = shared_address(&shared_.full[position_.slot]);
    const std::uint32_t in_boxes = boxes_.copy(tiles, rows, to, full, [&] {
      note(params_, Activity::kAwaitSlot, tiles.key());
      barrier_wait(shared_address(&shared_.empty[position_.slot]), position_.parity ^ 1);
      note(params_, Activity::kIssueCopies, tiles.key());
    });
    if (in_boxes == Boxes::kAllRuns) {
      barrier_arrive(full);
    } else {
      load_rows(tiles, rows, to, in_boxes);
      barrier_arrive_after_copies(full);
    }
    position_.advance(2);  // K and V take turns
  }

  /// All runs that do not come in boxes.
  __device__ __forceinline__ void load_rows(const Tiles& tiles, RowRange rows, std::uint32_t to,
                                            std::uint32_t in_boxes) {
    const auto* const base = static_cast<const std::byte*>(cache_.data);
    const std::int64_t stride = cache_.token_stride * kElementBytes;
#pragma unroll 1
    for (int first = 0; first < kTileKeys; first += kRunKeys) {
      const int run = first / kRunKeys;
      if ((in_boxes >> static_cast<unsigned>(run) & 1U) != 0) continue;
      const std::uint32_t to_rows = to + Layout::below(first);
      if (tiles.has_runs()) {
        const std::int64_t offset = __shfl_sync(
            kAllLanes, Boxes::kAreRuns ? tiles.find_offset_near(run) : tiles.offset_near(run),
            tiles.lane_of(run));
        rows_.load_run(to_rows, base + offset, stride, rows.from(first));
      } else {
        rows_.load_scattered(to_rows, base, tiles.offset_near(first), first % kWarpSize,
                             rows.from(first));
      }
    }
    load_token_scales(tiles, rows, to);
  }

  /// Behind the keys of the tile at `to`, if tokens have their own.
  __device__ __forceinline__ void load_token_scales(const Tiles& tiles, RowRange rows,
                                                    std::uint32_t to) const {
    if constexpr (C::kHasTokenScales) {
      if (!loads_keys_ || params_.tensors.k_token_scale.data == nullptr) return;
      const auto scales = to + static_cast<std::uint32_t>(C::kScalesBegin);
      load_scales(scales, params_.tensors.k_token_scale, tiles, rows);
      load_scales(scales + C::kScaleBytes, params_.tensors.v_token_scale, tiles, rows);
    }
  }
  /// The scales of a tile's tokens; zeros for those that the unit does not read.
  __device__ void load_scales(std::uint32_t to, const core::TokenScales& scales, const Tiles& tiles,
                              RowRange rows) const {
    const float* const base = scales.data + tiles.unit().kv_head_begin * scales.head_stride;
#pragma unroll 1
    for (int first = 0; first < kTileKeys; first += kWarpSize) {
      const int key = first + lane_;
      const auto place = tiles.place_of(first, key);
      copy_word_async(to + static_cast<std::uint32_t>(key) * sizeof(float),
                      base + place.page * scales.page_stride + place.token * scales.token_stride,
                      rows.has(key));
    }
  }

  /// @param is_due  Waits for room, instead of doing nothing if there is none.
  __device__ void hand_over(const Unit& unit, bool is_due) {
    const std::uint32_t empty = shared_address(&shared_.fixed.queries_empty);
    if (!is_due && !__all_sync(kAllLanes, barrier_is_over(empty, query_parity_ ^ 1))) return;
    note(params_, Activity::kHandOver, unit.seq);
    barrier_wait(empty, query_parity_ ^ 1);
    if (!unit.sees_nothing()) load_queries(unit);
    publish(unit);
    tiles_ahead_ = kHandedOver;
  }

  /// A unit without rows.
  __device__ void hand_over_end() {
    barrier_wait(shared_address(&shared_.fixed.queries_empty), query_parity_ ^ 1);
    publish(Unit{});
  }

  __device__ void publish(const Unit& unit) {
    const std::uint32_t full = shared_address(&shared_.fixed.queries_full);
    barrier_arrive_after_copies(full);
    if (lane_ == 0) {
      shared_.fixed.units[query_parity_] = unit;
      barrier_arrive(full);
    }
    query_parity_ ^= 1;
  }

  /// Lane i gives the place of row i.
  __device__ void load_queries(const Unit& unit) {
    static_assert(C::kTileRows <= kWarpSize);
    if constexpr (C::kTakesCodes) {
      if (params_.shape.q_dtype == DType::kFloat8E4M3) {
        load_query_rows<FirstHalves<typename C::QueryLayout>>(unit, 1);
        return;
      }
    }
    load_query_rows<typename C::QueryLayout>(unit, kQueryElementBytes);
  }
  template <typename QueryLayout>
  __device__ __forceinline__ void load_query_rows(const Unit& unit, int element_bytes) {
    const core::Rows& q = params_.tensors.q;
    const RowTarget row = row_of_q(params_, unit, min(lane_, unit.rows - 1));
    const std::int64_t offset =
        (row.token * q.token_stride + row.head * q.head_stride) * element_bytes;
    const std::uint32_t to = shared_address(shared_.fixed.queries);
    const RowLoader<QueryLayout> rows(lane_);
#pragma unroll 1
    for (int first = 0; first < unit.rows; first += kRunKeys) {
      rows.load_scattered(to + QueryLayout::below(first), static_cast<const std::byte*>(q.data),
                          offset, first, {0, unit.rows - first});
    }
  }

  const AttendParams& params_;
  const Boxes boxes_;
  typename C::Shared& shared_;
  const core::Pages cache_;
  const bool loads_keys_;
  const int lane_;
  const RowLoader<Layout, Boxes::kReuse> rows_;
  RingPosition<C::kSlots> position_;
  std::uint32_t query_parity_ = 0;
  int tiles_ahead_ = kHandedOver;  // of a unit not handed over
};

}  // namespace quire::cuda::mma
