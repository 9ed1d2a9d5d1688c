// SPDX-License-Identifier: Apache-2.0
/// @file
/// The computing warpgroups of large units. Each takes 64 rows of the unit's 128 against all of its
/// keys, a tile of 128 at a time (of heads of 64 three have 192 rows, and a tile 96 keys):
///
///   S [64, 128]  = Q [64, D] · K [128, D]ᵀ      from shared memory
///   P [64, 128]  = 2^(S − max)                  in registers, rows of a quad of lanes
///   O [64, Dv]  += P · V [128, Dv]              from registers and shared memory
///
/// (of 64 keys where heads are wider than 128).
///
/// A tile's scores are multiplied while the tile before it is still being accumulated, and the
/// warpgroups take turns at issuing products, so that the others compute weights while the tensor
/// cores work for one. After FlashAttention-3 (Shah et al., 2024).
#pragma once

#include <cfloat>
#include <cstdint>

#include "cuda/attend/params.hpp"
#include "cuda/attend/results.cuh"
#include "cuda/attend/unit_end.cuh"
#include "cuda/attend/visibility.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/consumer_state.cuh"
#include "cuda/sm90/instructions.cuh"
#include "cuda/timeline/note.cuh"

namespace quire::cuda::sm90 {

/// This warpgroup's rows of one unit, or piece of one. The scores of its first tile are there when
/// it begins (`ConsumerState::begin_unit`).
/// @tparam kIsPlain  The unit is plain (`UnitQueue`).
template <typename C, bool kIsPlain>
class UnitAttention {
  static constexpr int kScores = ConsumerState<C>::kScores;

 public:
  __device__ UnitAttention(ConsumerState<C>& state, const LargeUnit& unit, const RowEnds& ends)
      : state_(state), params_(state.params), unit_(unit), ends_(ends) {
    if constexpr (kIsPlain) {
      const float of_keys = C::kIsNarrow ? key_scale(params_, unit.kv_head_begin) : 1.0F;
      set_scale(params_.shape.sm_scale * of_keys * kLog2E);
    } else {
      const LogitTransform logits(params_, unit.kv_head_begin);
      is_scaled_ = logits.is_linear() && logits.scale() > 0.0F;
      set_scale(is_scaled_ ? logits.scale() : 1.0F);
    }
  }

  /// Attends to all keys, the last ones first: the tile that some rows see in part is then the one
  /// that nothing can be done beside.
  /// @param scores  Of the last tile.
  __device__ __forceinline__ void run(float (&scores)[kScores]) {
    std::int32_t key = unit_.last_key;
#pragma unroll 1
    while (true) {
      weigh_edge_tile(scores, key);
      if ((key -= C::kTileKeys) < unit_.first_key) break;
      const std::int32_t inner_begin = begin_of_inner(key);
      if (key >= inner_begin) {
#pragma unroll 1
        while (key >= inner_begin && attend_inner_tile<false>(scores, key)) key -= C::kTileKeys;
        if (kIsPlain && key < inner_begin) {  // what is left begins with a window
#pragma unroll 1
          while (key >= unit_.first_key && attend_inner_tile<true>(scores, key)) {
            key -= C::kTileKeys;
          }
        }
        if (state_.any_in_warpgroup(exceeds_)) {
          key += C::kTileKeys;
          score_again(scores);
          continue;
        }
        if (key < unit_.first_key) break;
      }
      settle();
      score_edge_tile(scores);
    }
    settle();
    wait_for_slot(values(), values_are_edge_);
    accumulate();
    wait_for_products<0>();
    hold(o_);
    state_.release_slot(values());
  }

  /// Writes o and lse, or partial results.
  __device__ __forceinline__ void finish() {
    note(params_, Activity::kStore, unit_.seq);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum_[half] += __shfl_xor_sync(kAllLanes, sum_[half], 1);
      sum_[half] += __shfl_xor_sync(kAllLanes, sum_[half], 2);
    }
    if (unit_.num_pieces > 1 || unit_.leaves_states()) {
      store_partial();
    } else if constexpr (kIsPlain) {
      store_plain();
    } else {
      store_final();
    }
  }

 private:
  using Element = typename C::Element;
  static constexpr int kColumns = C::kHeadDimVo;                       // of o
  static constexpr int kStepColumns = kColumns % 128 == 0 ? 128 : 64;  // per product
  static constexpr int kChains = 4;  // of dependent instructions that run side by side
  static constexpr int kStepKeys = 16;
  static constexpr int kKeySteps = C::kTileKeys / kStepKeys;
  static constexpr int kWeights = kScores / 2;  // registers

  /// In units of log 2: what a row's highest score may be above its base before it is raised.
  static constexpr float kSlack = 8.0F;
  /// Sum of a thread's weights of a tile for a row that an element holds, and more than `raise_bases`
  /// leaves.
  static constexpr float kMostWeightSum = 32768.0F;
  static_assert(kScores / 2 * (1 << static_cast<int>(kSlack)) < kMostWeightSum);
  static constexpr float kNoBase = -FLT_MAX;            // of a row that has seen no key
  static constexpr int kScales = C::kIsNarrow ? 2 : 1;  // rows have their own, or share one
  /// A ring of few slots needs those of the tile before at once.
  static constexpr bool kSettlesLate = C::kSlots >= 8;

  // What is needed at a unit's edges only is computed there: the loop needs the registers.

  /// Row `half` (0 or 1) that this thread's fragments hold: elements 4 i + 2 half and the next.
  __device__ int row_of(int half) const { return row_of_thread(state_, half); }
  __device__ int first_row_of_warp() const {
    return opaque(state_.warpgroup) * kProductRows + opaque(state_.warp) * 16;
  }
  /// Of the thread, in the quad that shares a row.
  __device__ int quad() const { return lane() % 4; }
  static __device__ int lane() { return opaque(static_cast<int>(threadIdx.x)) % kWarpSize; }

  /// Where the tiles down from the one at `key` begin of which all rows see all keys, and whose
  /// scores need nothing but a scale; INT32_MAX if the one at `key` is none.
  __device__ std::int32_t begin_of_inner(std::int32_t key) const {
    const schedule::KeyRange seen = Visibility(params_, unit_).seen_by_all();
    // If the keys that all see end with the tile, some rows have seen none of the tile before; all
    // have a base below the tiles that are inner.
    return is_scaled_ && key + C::kTileKeys < seen.end ? seen.begin : INT32_MAX;
  }

  /// @param scale  From logits that q, K and V as they are would give.
  __device__ void set_scale(float scale) {
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      scale_[i] = scale;
      if constexpr (C::kIsNarrow) {
        if (is_scaled_) scale_[i] *= state_.query_factor(unit_, row_of(i));
        if (scale_[i] == 0.0F) scale_[i] = FLT_MIN;  // −inf times 0 would be NaN
      }
    }
  }
  __device__ float scale_of(int half) const { return scale_[half % kScales]; }

  // The ring holds K(t) V(t) K(t+1) V(t+1) …, t in the order of attending. While t + 1 is to be
  // scored next, keys() is K(t+1) and values() V(t).

  /// The tile that is scored next: `state_.position` is that of its keys.
  [[nodiscard]] __device__ mma::RingPosition<C::kSlots> keys() const { return state_.position; }
  /// The tile before it, which is accumulated.
  [[nodiscard]] __device__ mma::RingPosition<C::kSlots> values() const {
    return state_.position.before();
  }

  /// @param is_edge  Whatever others are, the tile's first or last run may have come row by row.
  __device__ __forceinline__ void wait_for_slot(mma::RingPosition<C::kSlots> at, bool is_edge) {
    state_.wait_for_slot(at, is_edge || (!kIsPlain && !state_.has_boxes));
  }

  // The tile that was weighed last is pending until it is known whether its weights fit the bases:
  // its keys are held, and the weights are not in the sums.

  __device__ __forceinline__ void settle() {
    sum_[0] += pending_sum_[0];
    sum_[1] += pending_sum_[1];
    state_.release_slot(values().before());
  }

  /// The turn is kept if the tile before is attended again: all warpgroups take as many.
  __device__ __forceinline__ void take_turn() {
    if (!has_turn_) state_.wait_for_turn();
    has_turn_ = true;
  }
  __device__ __forceinline__ void pass_turn() {
    state_.pass_turn();
    has_turn_ = false;
  }

  /// A tile of which nothing is hidden, but perhaps its first keys by a window: its scores become
  /// weights while the weights of the one before are multiplied. That they fit the bases is assumed
  /// and found out when the next tile begins, so that nobody waits for a maximum, nor for the other
  /// warps.
  /// @tparam kHasWindow  Some rows do not see the tile's first keys, but all have seen later ones.
  /// @return False if those of the tile before do not: it must be attended again, as an edge.
  template <bool kHasWindow>
  __device__ __forceinline__ bool attend_inner_tile(float (&scores)[kScores], std::int32_t key) {
    note(params_, Activity::kInnerTile, key);
    wait_for_slot(keys(), kHasWindow);  // the run where a window begins comes row by row
    take_turn();                        // what any of the warpgroup said before is known now
    const int tile = key / C::kTileKeys;
    if (state_.exceeds(tile + 1) != 0) return false;
    if constexpr (!kSettlesLate) settle();
    state_.score(scores);
    wait_for_slot(values(), values_are_edge_);
    accumulate();
    pass_turn();
    if constexpr (kSettlesLate) settle();
    wait_for_products<1>();
    hold(scores);
    if constexpr (kHasWindow) hide_before<kScores>(scores, key);
    exceeds_ = to_powers<kScores>(scores, pending_sum_) > kMostWeightSum;
    if (exceeds_) state_.exceeds(tile) = 1;
    wait_for_products<0>();
    hold(o_);
    state_.release_slot(values());
    state_.position.advance(2);
    values_are_edge_ = kHasWindow;
    to_weights<kScores>(scores);
    return true;
  }

  // Edges are the first tile, those at an end of what some rows see (but for the begin of a plain
  // unit's window), and those whose scores need more than a scale or do not fit the bases.

  __device__ __forceinline__ void score_edge_tile(float (&scores)[kScores]) {
    note(params_, Activity::kEdgeTile);
    wait_for_slot(keys(), true);
    take_turn();
    state_.score(scores);
    wait_for_slot(values(), values_are_edge_);
    accumulate();
    pass_turn();
    wait_for_products<0>();
    hold(scores);
    hold(o_);
    state_.release_slot(values());
  }

  /// Of the pending tile, for which all of the warpgroup have come here.
  __device__ __forceinline__ void score_again(float (&scores)[kScores]) {
    state_.exceeds(0) = 0;
    state_.exceeds(1) = 0;
    exceeds_ = false;
    state_.meet_warpgroup();  // nobody may clear what another has said of a later tile
    state_.position = values().before();
    state_.score(scores);
    wait_for_products<0>();
    hold(scores);
    hold(o_);
  }

  /// Scores become weights. No product is on its way.
  __device__ __forceinline__ void weigh_edge_tile(float (&scores)[kScores], std::int32_t key) {
    state_.position.advance(2);
    values_are_edge_ = true;
    if (kIsPlain && key + C::kTileKeys / 2 >= unit_.kv_end) {
      weigh<kScores / 2>(scores, key);
#pragma unroll
      for (int i = kWeights / 2; i < kWeights; ++i) weights_[i] = 0;
    } else {
      weigh<kScores>(scores, key);
    }
  }
  /// @tparam kCount  How many of the thread's scores are of keys at all; the tile's others are
  ///   hidden.
  template <int kCount>
  __device__ __forceinline__ void weigh(float (&scores)[kScores], std::int32_t key) {
    to_logits<kCount>(scores, key);
    raise_bases<kCount>(scores, key < unit_.last_key);
    to_powers<kCount>(scores, pending_sum_);
    to_weights<kCount>(scores);
  }

  // --- products ----------------------------------------------------------------------------------

  /// Begins o += P · V.
  __device__ __forceinline__ void accumulate() {
    using Layout = typename C::ValueLayout;
    const auto tile = Operand<Layout>::at(state_.slot_address(values()));
    hold(o_);
    hold(weights_);
    begin_products();
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
#pragma unroll
      for (int column = 0; column < kColumns; column += kStepColumns) {
        multiply_registers<Element, kStepColumns>(
            o_ + column / 2, weights_ + step * 4,
            tile.after(Layout::below(step * kStepKeys) + column / 64 * Layout::kPanelBytes));
      }
    }
    commit_products();
  }

  // --- softmax -----------------------------------------------------------------------------------

  /// Where the keys begin that a row may see, in view of its unit and window.
  __device__ std::int32_t begin_of_seen(int row) const {
    const std::int32_t window = params_.shape.window_left;
    const std::int32_t position =
        unit_.lengths.position(unit_.q_begin + params_.group_size.quotient(row));
    if (window < 0 || position <= 0) return unit_.kv_begin;
    return max(unit_.kv_begin, position - min(position, window));
  }

  // Weights are relative to a row's base: its maximum when it was last raised. As long as no score
  // is far above it, nothing is lost by leaving it, and o need not be lowered.

  // In what follows, kCount is how many of the thread's scores count: those of the tile's first
  // keys.

  /// Scores to weights, and their sums for this thread's rows.
  /// @return The larger one, which must not be above `kMostWeightSum`.
  template <int kCount>
  __device__ __forceinline__ float to_powers(float (&scores)[kScores], float (&sum)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sums[kChains];
#pragma unroll
      for (int i = 2 * half; i < kCount; i += 4) {
        scores[i] = exp2_fast(scores[i] * scale_of(half) - base_[half]);
        scores[i + 1] = exp2_fast(scores[i + 1] * scale_of(half) - base_[half]);
        const float pair = scores[i] + scores[i + 1];
        const int chain = i / 4 % kChains;
        sums[chain] = i < 4 * kChains ? pair : sums[chain] + pair;
      }
      sum[half] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    return fmaxf(sum[0], sum[1]);
  }

  /// Raises the bases of rows of which a score is far above it, and lowers o to them, if there is
  /// something in it. No product is on its way.
  template <int kCount>
  __device__ __forceinline__ void raise_bases(const float (&scores)[kScores], bool lowers_o) {
    const float top[2] = {quad_max(max_of<kCount>(scores, 0)) * scale_of(0),
                          quad_max(max_of<kCount>(scores, 1)) * scale_of(1)};
    const bool is_raised[2] = {top[0] > base_[0] + kSlack, top[1] > base_[1] + kSlack};
    if (!__any_sync(kAllLanes, is_raised[0] || is_raised[1])) return;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float base = is_raised[half] ? top[half] : base_[half];
      factor[half] = is_raised[half] ? exp2_fast(base_[half] - base) : 1.0F;
      base_[half] = base;
      sum_[half] *= factor[half];
    }
    if (!lowers_o) return;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) o_[i] *= factor[i % 4 / 2];
  }

  /// Of a row's scores that this thread holds.
  template <int kCount>
  __device__ __forceinline__ float max_of(const float (&scores)[kScores], int half) const {
    float max[kChains];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float pair = fmaxf(scores[4 * i + 2 * half], scores[4 * i + 2 * half + 1]);
      max[i % kChains] = i < kChains ? pair : fmaxf(max[i % kChains], pair);
    }
    return fmaxf(fmaxf(max[0], max[1]), fmaxf(max[2], max[3]));
  }
  /// Over the lanes that share a row.
  static __device__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
    return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
  }

  template <int kCount>
  __device__ __forceinline__ void to_weights(const float (&scores)[kScores]) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      weights_[i] = pack<Element>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  /// What is not a scale, and −inf where a row does not see a key.
  template <int kCount>
  __device__ __forceinline__ void to_logits(float (&scores)[kScores],
                                            std::int32_t first_key) const {
    if constexpr (kIsPlain) {
      hide_behind<kCount>(scores, first_key);
      if (params_.shape.window_left >= 0) hide_before<kCount>(scores, first_key);
    } else {
      if (!is_scaled_) transform(scores, first_key);
      const Visibility visibility(params_, unit_);
      if (!visibility.sees_all(first_key, first_key + C::kTileKeys)) {
        hide(scores, first_key, visibility);
      }
    }
  }

  /// Scale of any sign, soft cap and ALiBi: products become logits in units of log 2.
  __device__ __forceinline__ void transform(float (&scores)[kScores],
                                            std::int32_t first_key) const {
    const LogitTransform logits(params_, unit_.kv_head_begin);
    if constexpr (C::kIsNarrow) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = state_.query_factor(unit_, row_of(half));
#pragma unroll
        for (int i = 2 * half; i < kScores; i += 4) {
          scores[i] *= factor;
          scores[i + 1] *= factor;
        }
      }
    }
    if (logits.has_cap()) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) scores[i] = logits.template capped<false>(scores[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kScores; ++i) scores[i] *= logits.scale();
    }
    if (params_.tensors.alibi_slopes == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t row = min(row_of(half), unit_.rows - 1);
      const std::int32_t query = params_.group_size.quotient(row);
      const float slope =
          __ldg(params_.tensors.alibi_slopes + unit_.kv_head_begin * params_.shape.group_size +
                params_.group_size.remainder(row, query));
      const std::int32_t position = unit_.lengths.position(unit_.q_begin + query);
      const std::int32_t distance = position - (first_key + quad() * 2);
#pragma unroll
      for (int i = 2 * half; i < kScores; i += 4) {
        scores[i] -= LogitTransform::alibi(slope, distance - i / 4 * 8);
        scores[i + 1] -= LogitTransform::alibi(slope, distance - i / 4 * 8 - 1);
      }
    }
  }

  /// −inf from where on a row sees no keys.
  template <int kCount>
  __device__ __forceinline__ void hide_behind(float (&scores)[kScores],
                                              std::int32_t first_key) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t end = ends_.of_half[half] - first_key - quad() * 2;
#pragma unroll
      for (int i = 2 * half; i < kCount; i += 4) {
        if (i / 4 * 8 >= end) scores[i] = kNoKey;
        if (i / 4 * 8 + 1 >= end) scores[i + 1] = kNoKey;
      }
    }
  }

  /// −inf up to where a row begins to see keys.
  template <int kCount>
  __device__ __forceinline__ void hide_before(float (&scores)[kScores],
                                              std::int32_t first_key) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t begin = begin_of_seen(row_of(half)) - first_key - quad() * 2;
      if (begin <= 0) continue;
#pragma unroll
      for (int i = 2 * half; i < kCount; i += 4) {
        if (i / 4 * 8 < begin) scores[i] = kNoKey;
        if (i / 4 * 8 + 1 < begin) scores[i + 1] = kNoKey;
      }
    }
  }

  /// −inf where a row does not see a key.
  __device__ __forceinline__ void hide(float (&scores)[kScores], std::int32_t first_key,
                                       const Visibility& visibility) const {
    hide_behind<kScores>(scores, first_key);
    hide_before<kScores>(scores, first_key);
    if (params_.shape.mask == Mask::kTree || params_.shape.mask == Mask::kFull) [[unlikely]] {
      hide_by_mask(scores, first_key + quad() * 2, visibility);
    }
  }

  __device__ __forceinline__ void hide_by_mask(float (&scores)[kScores], std::int32_t own_key,
                                               const Visibility& visibility) const {
    static_assert(kScores <= 64);
    std::uint64_t seen = 0;
#pragma unroll 1
    for (int i = 0; i < kScores; ++i) {
      const std::int32_t query = unit_.q_begin + params_.group_size.quotient(row_of(i % 4 / 2));
      const bool sees = visibility.sees(query, own_key + i / 4 * 8 + i % 2);
      seen |= static_cast<std::uint64_t>(sees) << static_cast<unsigned>(i);
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      if ((seen >> static_cast<unsigned>(i) & 1U) == 0) scores[i] = kNoKey;
    }
  }

  // --- the end -----------------------------------------------------------------------------------

  __device__ __forceinline__ void scale_row(int half, float factor) {
#pragma unroll
    for (int i = 2 * half; i < kColumns / 2; i += 4) {
      o_[i] *= factor;
      o_[i + 1] *= factor;
    }
  }

  __device__ __forceinline__ void store_plain() {
    const float top = C::kIsNarrow ? value_scale(params_, unit_.kv_head_begin) : 1.0F;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale_row(half, sum_[half] == 0.0F ? 0.0F : __fdividef(top, sum_[half]));
    }
    if (first_row_of_warp() >= unit_.rows) return;
    put_chunks();
    store_boxes();
  }

  __device__ __forceinline__ void store_final() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowTarget target = row_target(params_, unit_, min(row_of(half), unit_.rows - 1));
      const RowResult result = result_of(params_, target.head, max_of_row(half), sum_[half]);
      if (quad() == 0 && row_of(half) < unit_.rows) store_lse(params_, target, result);
      scale_row(half, result.o_scale);
    }
    if (!can_store_chunks()) {
      store_pairs();
      return;
    }
    put_chunks();
    if (state_.maps.has_results && first_row_of_warp() + kBoxResults <= unit_.rows) {
      store_boxes();
    } else {
      store_chunks();
    }
  }

  // Final rows go through shared memory, where the warp's queries were.

  using Staged = typename C::ResultLayout;
  static constexpr int kRowBytes = kColumns * 2;
  static_assert(kRowBytes <= Staged::kRowBytes);

  /// Address of the warp's first row.
  __device__ std::uint32_t staged_rows() const {
    return Staged::row(state_.query_rows(state_.place), opaque(state_.warp) * 16);
  }

  __device__ __forceinline__ void put_chunks() const {
    if constexpr (!C::kIsNarrow) {
      put_chunks_of<Element>();
    } else if (params_.shape.o_dtype == DType::kBFloat16) {
      put_chunks_of<__nv_bfloat16>();
    } else {
      put_chunks_of<__half>();
    }
  }
  template <typename Stored>
  __device__ __forceinline__ void put_chunks_of() const {
    const std::uint32_t row =
        Staged::row(state_.query_rows(state_.place), opaque(state_.warp) * 16 + lane() % 16);
#pragma unroll
    for (int i = 0; i < kColumns / 2; i += 8) {
      store_matrices(Staged::chunk(row, i / 4 + lane() / 16),
                     {pack<Stored>(o_[i], o_[i + 1]), pack<Stored>(o_[i + 2], o_[i + 3]),
                      pack<Stored>(o_[i + 4], o_[i + 5]), pack<Stored>(o_[i + 6], o_[i + 7])});
    }
  }

  /// The warp's rows, all of which are there.
  __device__ __forceinline__ void store_boxes() const {
    show_to_products();
    __syncwarp();
    if (elect_one()) {
      const RowTarget target = row_target(params_, unit_, first_row_of_warp());
#pragma unroll
      for (int panel = 0; panel < kRowBytes / Staged::kRowStride; ++panel) {
        store_box(staged_rows() + static_cast<std::uint32_t>(panel * Staged::kPanelBytes),
                  state_.maps.results, panel * kBoxRowBytes / 2, target.head,
                  static_cast<std::int32_t>(target.token));
      }
      commit_boxes();
    }
    __syncwarp();
  }

  /// Each lane writes 16 bytes, the warp whole rows.
  __device__ __forceinline__ void store_chunks() const {
    constexpr int kChunks = kRowBytes / 16;
    const core::MutableRows& o = params_.tensors.o;
    __syncwarp();
#pragma unroll 1
    for (int first = 0; first < kBoxResults * kChunks; first += kWarpSize) {
      const int row = (first + lane()) / kChunks;
      const int column = (first + lane()) % kChunks;
      if (first_row_of_warp() + row >= unit_.rows) continue;
      const RowTarget target = row_target(params_, unit_, first_row_of_warp() + row);
      auto* const to = static_cast<std::uint16_t*>(o.data) + target.token * o.token_stride +
                       target.head * o.head_stride;
      *(reinterpret_cast<uint4*>(to) + column) = load_shared(Staged::chunk(
          Staged::row(state_.query_rows(state_.place), opaque(state_.warp) * 16 + row), column));
    }
    show_to_products();  // boxes of the next queries come behind
    __syncwarp();
  }

  /// What weights and o are relative to, as states of rows have it.
  __device__ float max_of_row(int half) const {
    return base_[half] == kNoBase ? kNoKey : base_[half];
  }

  /// Whether rows of o are 16-bit and begin at multiples of 16 bytes.
  __device__ bool can_store_chunks() const {
    const core::MutableRows& o = params_.tensors.o;
    const auto bits = static_cast<std::uint64_t>(o.token_stride | o.head_stride) * 2 |
                      reinterpret_cast<std::uint64_t>(o.data);
    return params_.shape.o_dtype != DType::kFloat32 && bits % 16 == 0;
  }

  /// Rows of o of any dtype, anywhere.
  __device__ __forceinline__ void store_pairs() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(half) >= unit_.rows) continue;
      const RowTarget target = row_target(params_, unit_, row_of(half));
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i) {
        const float pair[2] = {o_[i * 4 + half * 2], o_[i * 4 + half * 2 + 1]};
        store_o<typename C::Output>(params_, target, i * 8 + quad() * 2, pair);
      }
    }
  }

  __device__ __forceinline__ void store_partial() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(half) >= unit_.rows) continue;
      const std::int32_t to = partial_row<schedule::kLargeUnits>(params_, unit_, row_of(half));
      if (quad() == 0) {
        params_.partials.max_and_sum[to] = make_float2(max_of_row(half), sum_[half]);
      }
      float* const o = params_.partials.o + to * kColumns + quad() * 2;
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i) {
        store_pair(o + i * 8, o_[i * 4 + half * 2], o_[i * 4 + half * 2 + 1]);
      }
    }
  }

  ConsumerState<C>& state_;
  const AttendParams& params_;
  const LargeUnit& unit_;
  const RowEnds& ends_;
  bool is_scaled_ = true;  // a logit is the product times a positive number
  bool values_are_edge_ = true;
  float scale_[kScales];  // from scores to units of log 2
  std::uint32_t weights_[kWeights];
  float o_[kColumns / 2] = {};
  float base_[2] = {kNoBase, kNoBase};  // in units of log 2
  float sum_[2] = {};
  float pending_sum_[2];
  bool exceeds_ = false;  // pending weights of this thread do not fit
  bool has_turn_ = false;
};

}  // namespace quire::cuda::sm90
