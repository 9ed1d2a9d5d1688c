// SPDX-License-Identifier: Apache-2.0
// Step 02: several pages in flight through shared memory, table entries read 32 at a time.
//
//   as step 01, one block per request and kv head
//
// To keep a memory of 4.5 TB/s busy whose answers take most of a microsecond, about 4 MB must be on
// their way at any time: 32 KiB for each of 132 processors, better twice that. Registers cannot
// wait for so much. cp.async copies from global to shared memory without a register and without
// waiting: a thread issues copies for pages it will need later, and works on one that has arrived.
//
//   stage     0        1        2        3        4        0       …     a ring of 5 stages
//   page      0        1        2        3        4        5
//             computed |<------- on their way ---->|  5 may go where 0 was, once all have read it
//
// A block holds all four heads of a group, so that a key crosses the wires once for the four.
#include <cuda_runtime.h>

#include <cmath>

#include "copy_async.cuh"
#include "steps.hpp"

namespace ladder {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kStages = 5;
constexpr int kVectors = kHeadDim / 4;  // of 4 floats in a row
constexpr int kKeysPerWarp = kPageSize / kWarps;
constexpr int kLanesPerKey = kWarpSize / kKeysPerWarp;
constexpr int kVectorsPerLane = kVectors / kLanesPerKey;
static_assert(kVectors == kWarpSize, "a warp copies a row, and a lane holds one float4 of o");

/// One page of one head.
struct Stage {
  float4 k[kPageSize][kVectors];
  float4 v[kPageSize][kVectors];
};

/// Issues the copies of a request's pages, one page a call, in order.
struct PageLoader {
  const Problem<float>& problem;
  const RequestInfo request;
  const int kv_head;
  Stage* const stages;
  const int warp;
  const int lane;
  int page_id = kNoPage;  // of this lane's page among the 32 that the warp looked up last

  __device__ void load(int page) {
    const int count = pages_of(request.seq_len);
    if (page >= count) return;
    // One table entry per lane: 128 bytes in one read, every 32nd page. Step 01 read the table
    // once per position.
    if (page % kWarpSize == 0) {
      page_id = page + lane < count ? get_physical_page(problem, request, page + lane) : kNoPage;
    }
    const int id = __shfl_sync(kAllLanes, page_id, page % kWarpSize);
    Stage& stage = stages[page % kStages];
    for (int token = warp; token < kPageSize; token += kWarps) {
      // What lies beyond the last token may be anything, NaN too, and 0 · NaN is NaN: such rows
      // become zeros.
      const bool exists = id != kNoPage && page * kPageSize + token < request.seq_len;
      const std::int64_t at = token_offset(problem, exists ? id : 0, token, kv_head) + 4 * lane;
      copy_async(&stage.k[token][lane], problem.k_pages + at, exists);
      copy_async(&stage.v[token][lane], problem.v_pages + at, exists);
    }
  }
};

/// A warp's results for the group's heads over its keys: 4 of each page.
struct WarpResult {
  float max[kGroup];
  float sum[kGroup];  // over this lane's keys only, until the end
  float4 o[kGroup];   // a lane holds 4 components
};

/// Scores of a page: eight lanes share a key, each multiplies 16 components. Eight neighbours read
/// 128 bytes in a row, which is what shared memory delivers at once.
__device__ void score_keys(const Stage& stage, const float4 (&q)[kGroup][kVectorsPerLane], int key,
                           int lane, float (&scores)[kGroup]) {
  for (float& score : scores) score = 0.0F;
#pragma unroll
  for (int i = 0; i < kVectorsPerLane; ++i) {
    const float4 k = stage.k[key][i * kLanesPerKey + lane % kLanesPerKey];
#pragma unroll
    for (int head = 0; head < kGroup; ++head) {
      const float4& a = q[head][i];
      scores[head] += a.x * k.x + a.y * k.y + a.z * k.z + a.w * k.w;
    }
  }
#pragma unroll
  for (int distance = 1; distance < kLanesPerKey; distance *= 2) {
    for (float& score : scores) score += __shfl_xor_sync(kAllLanes, score, distance);
  }
}

/// Online softmax as in step 01, four keys at a time, and the values of these keys.
__device__ void accumulate(const Stage& stage, int first_key, int lane,
                           const float (&scores)[kGroup], WarpResult& result) {
  float weights[kGroup];
#pragma unroll
  for (int head = 0; head < kGroup; ++head) {
    float max = fmaxf(result.max[head], scores[head]);
    for (int distance = kLanesPerKey; distance < kWarpSize; distance *= 2) {
      max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, distance));
    }
    // −inf as long as a warp has seen no key.
    const float keep = part_weight(result.max[head], max);
    weights[head] = scores[head] == -INFINITY ? 0.0F : exp2f(scores[head] - max);
    result.max[head] = max;
    result.sum[head] = result.sum[head] * keep + weights[head];
    float4& o = result.o[head];
    o = make_float4(o.x * keep, o.y * keep, o.z * keep, o.w * keep);
  }
#pragma unroll
  for (int key = 0; key < kKeysPerWarp; ++key) {
    const float4 v = stage.v[first_key + key][lane];
#pragma unroll
    for (int head = 0; head < kGroup; ++head) {
      const float weight = __shfl_sync(kAllLanes, weights[head], key * kLanesPerKey);
      float4& o = result.o[head];
      o.x += weight * v.x, o.y += weight * v.y, o.z += weight * v.z, o.w += weight * v.w;
    }
  }
}

/// Joins the warps' results, by the rule of step 01. A thread has one component of each head.
__device__ void merge_and_store(const Problem<float>& problem, std::int64_t first_row, int warp,
                                int lane, const WarpResult& result) {
  __shared__ SoftmaxState states[kWarps][kGroup];
  __shared__ float4 o[kWarps][kGroup][kVectors];
  for (int head = 0; head < kGroup; ++head) {
    float sum = result.sum[head];
    for (int distance = kLanesPerKey; distance < kWarpSize; distance *= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    if (lane == 0) states[warp][head] = {result.max[head], sum};
    o[warp][head][lane] = result.o[head];
  }
  __syncthreads();
  const int component = static_cast<int>(threadIdx.x);
  for (int head = 0; head < kGroup; ++head) {
    float max = -INFINITY;
    for (int part = 0; part < kWarps; ++part) max = fmaxf(max, states[part][head].max);
    float sum = 0.0F;
    float total = 0.0F;
    for (int part = 0; part < kWarps; ++part) {
      const float weight = part_weight(states[part][head].max, max);
      sum += weight * states[part][head].sum;
      total += weight * reinterpret_cast<const float*>(o[part][head])[component];
    }
    problem.o[(first_row + head) * kHeadDim + component] = sum > 0.0F ? total / sum : 0.0F;
  }
}

__global__ void __launch_bounds__(kThreads, 2) attend_pages_in_flight(Problem<float> problem) {
  extern __shared__ __align__(sizeof(float4)) unsigned char shared_bytes[];
  Stage* const stages = reinterpret_cast<Stage*>(shared_bytes);
  const RequestInfo request = problem.requests[blockIdx.y];
  const int kv_head = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int first_key = warp * kKeysPerWarp;  // of a page, for this warp
  const int key = first_key + lane / kLanesPerKey;
  const std::int64_t first_row =
      std::int64_t{request.q_start} * problem.num_qo_heads + kv_head * kGroup;

  PageLoader loader{problem, request, kv_head, stages, warp, lane};
  for (int page = 0; page < kStages - 1; ++page) {
    loader.load(page);
    commit_copies();  // one group of copies per page, empty ones too: so groups count pages
  }

  float4 q[kGroup][kVectorsPerLane];
  WarpResult result;
#pragma unroll
  for (int head = 0; head < kGroup; ++head) {
    const auto* const row =
        reinterpret_cast<const float4*>(problem.q + (first_row + head) * kHeadDim);
    for (int i = 0; i < kVectorsPerLane; ++i)
      q[head][i] = row[i * kLanesPerKey + lane % kLanesPerKey];
    result.max[head] = -INFINITY;
    result.sum[head] = 0.0F;
    result.o[head] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  }

  for (int page = 0; page < pages_of(request.seq_len); ++page) {
    wait_for_copies<kStages - 2>();   // this thread's copies of the page have arrived …
    __syncthreads();                  // … and everybody's; and everybody is done with the last
    loader.load(page + kStages - 1);  // into the stage of the page before this one
    commit_copies();

    const Stage& stage = stages[page % kStages];
    float scores[kGroup];
    score_keys(stage, q, key, lane, scores);
    const bool exists = page * kPageSize + key < request.seq_len;
    for (float& score : scores) score = exists ? score * kScoreScale : -INFINITY;
    accumulate(stage, first_key, lane, scores, result);
  }
  merge_and_store(problem, first_row, warp, lane, result);
}

}  // namespace

void launch_02(const Problem<float>& problem, cudaStream_t stream) {
  constexpr int kSharedBytes = kStages * sizeof(Stage);
  cudaFuncSetAttribute(attend_pages_in_flight, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       kSharedBytes);
  const dim3 grid(static_cast<unsigned>(problem.num_kv_heads),
                  static_cast<unsigned>(problem.batch));
  attend_pages_in_flight<<<grid, kThreads, kSharedBytes, stream>>>(problem);
}

// What is the bottleneck? The bytes: fp32 is four of them per number, and the multiplications, one
// at a time, take nearly as long as the reading. The next file halves the bytes and gives the
// multiplications to the tensor cores.

}  // namespace ladder
