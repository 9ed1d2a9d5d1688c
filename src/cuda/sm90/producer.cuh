// SPDX-License-Identifier: Apache-2.0
/// @file
/// The loading warps of large units: one for K, one for V, one for q.
#pragma once

#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/mma/row_loader.cuh"
#include "cuda/mma/tile_stream.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/units.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::sm90 {

/// A tile's runs of 16 keys as boxes of K or V.
/// @tparam Layout  Of the tile in shared memory.
/// @tparam kIsSmall  Of small units: little code counts for more than few instructions, since short
///   batches wait for it to come from memory.
/// @tparam kAreShown  Rows that may have been copied one by one to the same place before have been shown
///   to what follows.
template <typename Layout, int kTileKeys, bool kIsSmall, bool kAreShown>
class RunBoxes {
 public:
  static constexpr bool kAreRuns = true;
  /// Large units of one request and head have the same keys, small ones beside them have others.
  static constexpr Reuse kReuse = kIsSmall ? Reuse::kNone : Reuse::kSome;
  static constexpr int kRuns = kTileKeys / kBoxKeys;
  static constexpr std::uint32_t kAllRuns = (1U << kRuns) - 1;

  __device__ RunBoxes(const AttendParams& params, const TileMaps& maps, bool of_keys, int lane)
      : params_(params),
        pool_(of_keys ? maps.keys : maps.values),
        has_boxes_(maps.has_kv),
        lane_(lane) {}

  /// Finds the runs of a stretch of tiles, of large units. All lanes call it before the first tile.
  template <typename Tiles>
  __device__ __forceinline__ void begin_stretch(const Tiles& tiles) {
    static_assert(!kIsSmall && Tiles::kRunsPerLane == kRunsPerLane);
    if (!has_boxes_) return;
    const Unit& unit = tiles.unit();
    panel_ = unit.kv_head_begin * pool_.panels_per_head;
#pragma unroll
    for (int i = 0; i < kRunsPerLane; ++i) {
      const std::int32_t key = tiles.key_of_own_run(i);
      runs_[i] = kNoRun;
      if (i > 0 && key - lane_ * kBoxKeys >= unit.kv_end) continue;  // so are all lanes' keys
      const RunPlace place = place_of(tiles.page_of_own_run(i), key);
      runs_[i] = key >= unit.kv_begin && key < unit.kv_end ? place.run : kNoRun;
      if (i == 0) token_ = place.token;
    }
  }

  /// Copies the runs of which all keys are seen or none, which makes zeros, into the tile at `to`
  /// after `wait_for_room()`.
  /// @param full  A barrier that is told of it. Nobody has arrived there.
  /// @return A bit for each of these runs.
  template <typename Tiles, typename Wait>
  __device__ __forceinline__ std::uint32_t copy(const Tiles& tiles, mma::RowRange rows,
                                                std::uint32_t to, std::uint32_t full,
                                                const Wait& wait_for_room) const {
    const std::uint32_t boxes = has_boxes_ ? runs_in_boxes(rows) : 0;
    if (boxes == 0) {
      wait_for_room();
    } else {
      copy_boxes(tiles, rows, boxes, to, full, wait_for_room);
    }
    return boxes;
  }

  [[nodiscard]] __device__ bool are_there() const { return has_boxes_; }

  struct RunPlace {
    std::int32_t run;
    std::int32_t token;  // where in the run the keys begin, the same for all of a unit
  };
  struct Places {
    RunPlace own;  // of this lane's run
    std::int32_t panel;
  };
  /// Of the runs near those of the tile, of small units.
  template <typename Tiles>
  [[nodiscard]] __device__ Places places_near(const Tiles& tiles) const {
    static_assert(kIsSmall);
    return {place_of(tiles.page_near(0), tiles.key_of_own_run(tiles.own_run_near())),
            tiles.unit().kv_head_begin * pool_.panels_per_head};
  }
  /// Copies a tile of which all keys are seen, the runs of the lanes from `first_lane` on, into the tile
  /// at `to`, where there is room.
  __device__ __forceinline__ void copy_whole(const Places& places, int first_lane, std::uint32_t to,
                                             std::uint32_t full) const {
    std::int32_t run[kRuns];
#pragma unroll
    for (int i = 0; i < kRuns; ++i) run[i] = __shfl_sync(kAllLanes, places.own.run, first_lane + i);
    const std::uint64_t map = opaque(reinterpret_cast<std::uint64_t>(&pool_.map));
    if (elect_one()) {
      if constexpr (!kAreShown) order_before_boxes();
      barrier_expect(full, static_cast<std::uint32_t>(kRuns * kRunBytes));
#pragma unroll
      for (int i = 0; i < kRuns; ++i) {
        copy_box<kReuse>(to + Layout::below(i * kBoxKeys), map, places.own.token, places.panel,
                         run[i], full);
      }
    }
    __syncwarp();
  }

 private:
  static constexpr int kRunBytes = kBoxKeys * Layout::kRowBytes;
  static constexpr std::int32_t kNoRun = -1;

  /// All but those that are seen in part.
  static __device__ std::uint32_t runs_in_boxes(mma::RowRange rows) {
    if (!kIsSmall && rows.has_all(kTileKeys)) return kAllRuns;
    std::uint32_t boxes = kAllRuns;
    if (rows.begin > 0 && rows.begin % kBoxKeys != 0) boxes &= ~(1U << rows.begin / kBoxKeys);
    if (rows.end < kTileKeys && rows.end % kBoxKeys != 0) boxes &= ~(1U << rows.end / kBoxKeys);
    return boxes;
  }

  /// Of the run of keys from `key` on.
  __device__ __forceinline__ RunPlace place_of(std::int32_t page, std::int32_t key) const {
    std::int32_t first = key;  // token of the page, or row of the pool
    std::int32_t run = 0;
    if (params_.shape.page_size == kContiguousKv) {
      first += page;
    } else {
      first = params_.page_size.remainder(first, params_.page_size.quotient(first));
      run = page * pool_.runs_per_page;
    }
    return {run + first / kBoxKeys, first % kBoxKeys};
  }

  template <typename Tiles, typename Wait>
  __device__ __forceinline__ void copy_boxes(const Tiles& tiles, mma::RowRange rows,
                                             std::uint32_t boxes, std::uint32_t to,
                                             std::uint32_t full, const Wait& wait_for_room) const {
    std::int32_t own_run;  // that a lane knows of; one issues them all
    int first_lane = 0;
    std::int32_t token;
    std::int32_t panel;
    if constexpr (kIsSmall) {
      const int own = lane_ % kRuns;
      const std::int32_t page = __shfl_sync(kAllLanes, tiles.page_near(0), tiles.lane_of(own));
      const RunPlace place = place_of(page, tiles.key() + own * kBoxKeys);
      own_run = rows.has(own * kBoxKeys) ? place.run : kNoRun;
      token = place.token;
      panel = tiles.unit().kv_head_begin * pool_.panels_per_head;
    } else {
      const int near = tiles.own_run_near();
      first_lane = tiles.lane_of(0);
      own_run = runs_[0];
#pragma unroll
      for (int i = 1; i < kRunsPerLane; ++i) own_run = near >= i ? runs_[i] : own_run;
      token = token_;
      panel = panel_;
    }
    const std::uint32_t barrier = opaque(full);
    const std::uint64_t map = opaque(reinterpret_cast<std::uint64_t>(&pool_.map));
    const auto expect = [&] {
      if constexpr (!kAreShown) order_before_boxes();
      barrier_expect(barrier, static_cast<std::uint32_t>(__popc(boxes) * kRunBytes));
    };
    const auto copy_run = [&](int i, std::int32_t run) {
      if ((boxes >> static_cast<unsigned>(i) & 1U) == 0) return;
      copy_box<kReuse>(to + Layout::below(i * kBoxKeys), map, token, panel, run, barrier);
    };
    if constexpr (kIsSmall) {
      wait_for_room();
      if (elect_one()) expect();
#pragma unroll 1
      for (int i = 0; i < kRuns; ++i) {
        const std::int32_t run = __shfl_sync(kAllLanes, own_run, first_lane + i);
        if (elect_one()) copy_run(i, run);
      }
    } else {
      std::int32_t run[kRuns];
#pragma unroll
      for (int i = 0; i < kRuns; ++i) run[i] = __shfl_sync(kAllLanes, own_run, first_lane + i);
      wait_for_room();
      if (elect_one()) {
        expect();
        if (boxes == kAllRuns) {  // nothing to jump over: what boxes have in common is kept
#pragma unroll
          for (int i = 0; i < kRuns; ++i) {
            copy_box<kReuse>(to + Layout::below(i * kBoxKeys), map, token, panel, run[i], barrier);
          }
        } else {
#pragma unroll
          for (int i = 0; i < kRuns; ++i) copy_run(i, run[i]);
        }
      }
    }
    __syncwarp();
  }

  const AttendParams& params_;
  const PoolMap& pool_;
  const bool has_boxes_;
  const int lane_;
  // Of a stretch of tiles of large units.
  static constexpr int kRunsPerLane = kIsSmall ? 1 : kTileKeys / kWarpSize;
  std::int32_t runs_[kRunsPerLane] = {};  // the lane's
  std::int32_t token_ = 0;
  std::int32_t panel_ = 0;
};

/// For a `TileLoader` that does nothing but load.
struct NothingBeside {
  __device__ void run() const {}
};

/// Where tiles of K and V are loaded to, in turn.
template <typename C>
struct RingSlots {
  static constexpr int kCount = C::kSlots;
  static constexpr int kStep = 2;
  static constexpr bool kAreShown = true;  // to products, and so to boxes
  static __device__ std::uint32_t tile(const typename C::Large& shared, int slot) {
    return shared.slot(slot);
  }
  static __device__ auto& full(typename C::Large& shared, int slot) { return shared.full[slot]; }
  static __device__ auto& empty(typename C::Large& shared, int slot) { return shared.empty[slot]; }
};
/// Where V is that will be widened.
template <typename C>
struct StagedSlots {
  static constexpr int kCount = C::kStagedTiles;
  static constexpr int kStep = 1;
  static constexpr bool kAreShown = false;
  static __device__ std::uint32_t tile(const typename C::Large& shared, int slot) {
    return shared_address(shared.besides.staged[slot]);
  }
  static __device__ auto& full(typename C::Large& shared, int slot) {
    return shared.fixed.staged.full[slot];
  }
  static __device__ auto& empty(typename C::Large& shared, int slot) {
    return shared.fixed.staged.empty[slot];
  }
};

/// Loads all tiles of K, or of V, into shared memory, the last tile of a unit first: in boxes, as far as
/// neighbours lie in a page and all of them are seen or none, which makes zeros.
/// @tparam Slots  `RingSlots` or `StagedSlots`.
template <typename C, typename Layout, typename Slots = RingSlots<C>>
class TileLoader {
 public:
  __device__ TileLoader(const AttendParams& params, const TileMaps& maps, typename C::Large& shared,
                        bool loads_keys, int lane)
      : params_(params),
        shared_(shared),
        boxes_(params, maps, loads_keys, lane),
        cache_(loads_keys ? params.tensors.k : params.tensors.v),
        lane_(lane) {
    at_.slot = loads_keys ? 0 : Slots::kStep - 1;
  }

  /// @param beside  What the warp does to each tile when it has loaded the next one.
  template <typename Beside = NothingBeside>
  __device__ __forceinline__ void run(Beside beside = {}) {
    note(params_, Activity::kFindUnits);
    UnitReader<C> units(shared_.fixed, lane_);
    Tiles tiles(params_, {&cache_}, kElementBytes, units, lane_, false);
    bool begins_stretch = true;
    bool has_tile = false;
#pragma unroll 1
    while (tiles.unit().rows > 0) {
      if (begins_stretch) boxes_.begin_stretch(tiles);
      if (!tiles.unit().sees_nothing()) {
        load(tiles);  // before asking for the next tiles' pages
        if (has_tile) beside.run();
        has_tile = true;
      } else if (has_tile) {
        // Nothing comes behind it for a while, and units may be waited for that wait for it.
        beside.run();
        has_tile = false;
      }
      note(params_, Activity::kLookAhead);
      tiles.look_ahead();
      begins_stretch = tiles.advance();
    }
    if (has_tile) beside.run();
    note(params_, Activity::kAwaitCopies);
    wait_for_own_copies();
  }

 private:
  using Tiles = mma::TileStream<C::kTileKeys, mma::Direction::kDescending, UnitReader<C>>;
  static constexpr int kElementBytes = sizeof(typename C::Kv);
  using Boxes = RunBoxes<Layout, C::kTileKeys, false, Slots::kAreShown>;
  static_assert(kBoxKeys == mma::kRunKeys && kBoxRowBytes == Layout::kRowStride);

  __device__ __forceinline__ void load(const Tiles& tiles) {
    const mma::RowRange rows{tiles.unit().kv_begin - tiles.key(),
                             tiles.unit().kv_end - tiles.key()};
    const std::uint32_t full = shared_address(&Slots::full(shared_, at_.slot));
    const std::uint32_t in_boxes = boxes_.copy(tiles, rows, place(0), full, [&] {
      note(params_, Activity::kAwaitSlot, tiles.key());
      barrier_wait(shared_address(&Slots::empty(shared_, at_.slot)), at_.parity ^ 1);
      note(params_, Activity::kIssueCopies, tiles.key());
    });
    if (in_boxes == Boxes::kAllRuns) {
      barrier_arrive(full);
    } else {
      load_rows(tiles, rows, in_boxes);
      barrier_arrive_after_copies(full);
    }
    at_.advance(Slots::kStep);
  }

  /// Address of a row of the slot, a multiple of 8.
  [[nodiscard]] __device__ std::uint32_t place(int row) const {
    return Slots::tile(shared_, at_.slot) + Layout::below(row);
  }

  /// All runs that do not come in boxes, row by row; rows that are not seen become zeros.
  __device__ __forceinline__ void load_rows(const Tiles& tiles, mma::RowRange rows,
                                            std::uint32_t in_boxes) {
    const auto* const base = static_cast<const std::byte*>(cache_.data);
    const std::int64_t stride = cache_.token_stride * kElementBytes;
    const mma::RowLoader<Layout> loader(lane_);
#pragma unroll 1
    for (int run = 0; run < Boxes::kRuns; ++run) {
      if ((in_boxes >> static_cast<unsigned>(run) & 1U) != 0) continue;
      const int first = run * mma::kRunKeys;
      if (tiles.has_runs()) {
        const std::int64_t offset =
            __shfl_sync(kAllLanes, tiles.find_offset_near(run), tiles.lane_of(run));
        loader.load_run(place(first), base + offset, stride, rows.from(first));
      } else {
        loader.load_scattered(place(first), base, tiles.find_offset_near(first), first % kWarpSize,
                              rows.from(first));
      }
    }
  }

  const AttendParams& params_;
  typename C::Large& shared_;
  Boxes boxes_;
  const core::Pages& cache_;
  const int lane_;
  mma::RingPosition<Slots::kCount> at_;
};

/// Begins to load rows of q, as many as a warp has lanes from `first` on, to the tile at `to`; zeros
/// behind the unit's last one.
template <typename Layout>
__device__ __forceinline__ void load_query_rows(const AttendParams& params, const Unit& unit,
                                                int element_bytes, int first, std::uint32_t to,
                                                const mma::RowLoader<Layout>& loader, int lane) {
  const core::Rows& q = params.tensors.q;
  const RowTarget row = row_of_q(params, unit, min(first + lane, unit.rows - 1));
  const std::int64_t offset =
      (row.token * q.token_stride + row.head * q.head_stride) * element_bytes;
#pragma unroll
  for (int half = 0; half < kWarpSize; half += mma::kRunKeys) {
    loader.load_scattered(to + Layout::below(first + half), static_cast<const std::byte*>(q.data),
                          offset, half, {0, unit.rows - first - half});
  }
}

/// Loads the queries of units, and tells the computing warps of the units with them.
template <typename C>
class QueryLoader {
 public:
  __device__ QueryLoader(const AttendParams& params, const TileMaps& maps,
                         typename C::Fixed& shared, int lane)
      : params_(params), maps_(maps), shared_(shared), lane_(lane), rows_(lane) {}

  /// Of all units, and of the end.
  __device__ void run() {
    UnitReader<C> units(shared_, lane_);
#pragma unroll 1
    while (true) {
      units.step();
      load(units.now());
      if (units.now().rows == 0) break;
      units.find_next();
    }
    wait_for_own_copies();
  }

  __device__ void load(const Unit& unit) {
    barrier_wait(shared_address(&shared_.queries_empty[at_.slot]), at_.parity ^ 1);
    if (unit.rows == 0 || unit.sees_nothing()) {
      barrier_arrive(full_barrier());
    } else if (maps_.has_queries && unit.rows == rows_of_box() && !unit.leaves_states()) {
      load_box(unit);
      barrier_arrive(full_barrier());
    } else {
      load_rows(unit);
      barrier_arrive_after_copies(full_barrier());
    }
    at_.advance();
  }

 private:
  using Layout = typename C::QueryLayout;

  [[nodiscard]] __device__ std::uint32_t full_barrier() const {
    return shared_address(&shared_.queries_full[at_.slot]);
  }

  /// All rows that a tile can have.
  [[nodiscard]] __device__ std::int32_t rows_of_box() const {
    return params_.group_size.quotient(C::kTileRows) * params_.shape.group_size;
  }
  /// Of a unit that has so many rows: others' queries would have a say in whether weights fit.
  __device__ void load_box(const Unit& unit) {
    const std::int32_t group_size = params_.shape.group_size;
    const std::uint32_t to = shared_address(shared_.queries[at_.slot]);
    if (elect_one()) {
      barrier_expect(full_barrier(), static_cast<std::uint32_t>(unit.rows * Layout::kRowBytes));
#pragma unroll
      for (int panel = 0; panel < Layout::kPanels; ++panel) {
        copy_box(to + static_cast<std::uint32_t>(panel * Layout::kPanelBytes), maps_.queries,
                 panel * kBoxRowBytes / C::kQueryElementBytes, unit.kv_head_begin * group_size,
                 unit.queries.first, full_barrier());
      }
    }
    __syncwarp();
  }

  __device__ void load_rows(const Unit& unit) {
    const std::uint32_t to = shared_address(shared_.queries[at_.slot]);
#pragma unroll 1
    for (int first = 0; first < C::kTileRows; first += kWarpSize) {
      load_query_rows(params_, unit, C::kQueryElementBytes, first, to, rows_, lane_);
    }
  }

  const AttendParams& params_;
  const TileMaps& maps_;
  typename C::Fixed& shared_;
  const int lane_;
  const mma::RowLoader<Layout> rows_;
  mma::RingPosition<C::kQueryBuffers> at_;
};

}  // namespace quire::cuda::sm90
