// SPDX-License-Identifier: Apache-2.0
/// @file
/// Rows of 8-bit codes in shared memory become rows of fp16 there, a warp's keys at a time.
#pragma once

#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/mma/widen.hpp"

namespace quire::cuda::sm90 {

/// @tparam Kv_    Of the codes.
/// @tparam From   How rows of codes lie.
/// @tparam To     How rows of fp16 lie, in groups of 8.
/// @tparam kKeys  At a time.
template <typename Kv_, typename From, typename To, int kKeys>
class RowWidener {
  // A lane reads 16 codes of a key at a time and writes two chunks of 8 numbers.
  static constexpr int kChunks = From::kRowBytes / 16;  // of codes
  static constexpr int kKeysAtOnce = kWarpSize / kChunks;
  static constexpr int kReads = kKeys / kKeysAtOnce;
  static_assert(kChunks % 4 == 0 && kWarpSize % kChunks == 0);

 public:
  using Codes = uint4[kReads];  // of a lane

  __device__ explicit RowWidener(int lane)
      : from_(From::chunk(From::row(0, own_key(lane)), own_chunk(lane))),
        to_(To::chunk(To::row(0, own_key(lane)), 2 * own_chunk(lane))) {}

  /// @param first  Address of the first key's row.
  __device__ __forceinline__ void read(Codes& codes, std::uint32_t first) const {
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      codes[i] = load_shared(From::later_row(first + from_, i * kKeysAtOnce));
    }
  }

  /// @param first  Address of the first key's row, a multiple of 8 in its tile.
  __device__ __forceinline__ void write(std::uint32_t first, const Codes& codes) const {
    const Places to(first + to_);
#pragma unroll
    for (int i = 0; i < kReads; ++i) put(to, i, codes[i]);
  }

 private:
  // Eight lanes read and write at the same time: four chunks of a key and four of the next one, which
  // are in different banks, as codes and as numbers.
  static __device__ int own_chunk(int of_lane) {
    const auto lane = static_cast<unsigned>(of_lane);
    return static_cast<int>(lane % 4 + (lane / 8 ^ lane / 4) % (kChunks / 4) * 4);
  }
  static __device__ int own_key(int of_lane) {
    const auto lane = static_cast<unsigned>(of_lane);
    return static_cast<int>(lane / 4 % 2 + lane / (2 * kChunks) * 2);
  }

  /// Where the lane's chunks are: few numbers, and others that are known at compile time.
  struct Places {
    static constexpr int kPeriod = To::kGroupRows / kKeysAtOnce;
    std::uint32_t first[kPeriod];
    std::uint32_t second[kPeriod];

    __device__ explicit Places(std::uint32_t own) {
#pragma unroll
      for (int i = 0; i < kPeriod; ++i) {
        first[i] = To::later_row(own, i * kKeysAtOnce);
        second[i] = first[i] ^ To::kChunkBytes;  // chunks are even and odd ones
      }
    }
    static __device__ constexpr std::uint32_t below(int read) {
      return To::below(read / kPeriod * To::kGroupRows);
    }
  };

  /// 16 codes as two neighbouring chunks of fp16.
  static __device__ __forceinline__ void put(const Places& to, int read, uint4 codes) {
    using Widen = mma::Widen<Kv_, mma::Order::kNeighbours>;
    const mma::Pairs a = Widen::pairs(codes.x);
    const mma::Pairs b = Widen::pairs(codes.y);
    store_shared(to.first[read % Places::kPeriod] + Places::below(read),
                 make_uint4(a.first, a.second, b.first, b.second));
    const mma::Pairs c = Widen::pairs(codes.z);
    const mma::Pairs d = Widen::pairs(codes.w);
    store_shared(to.second[read % Places::kPeriod] + Places::below(read),
                 make_uint4(c.first, c.second, d.first, d.second));
  }

  const std::uint32_t from_;
  const std::uint32_t to_;
};

}  // namespace quire::cuda::sm90
