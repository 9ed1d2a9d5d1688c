// SPDX-License-Identifier: Apache-2.0
// Step 01: one block per request, a page look-up per position, online softmax.
//
//   q [total_queries, heads, d], k_pages, v_pages [num_pages, page_size, heads, d]  ->  o
//
// Contiguous attention reads key t at k[t]. Here key t of a request is on its page t / page_size,
// and the page table says which physical page that is: one more read, before the reads that matter.
//
// A block has eight warps; they deal the positions among them like cards. For a position, each of a
// warp's 32 lanes holds 4 of the 128 components, so that a key is one read of 512 bytes.
//
// Softmax needs the largest score before the first exponential. "Online" means: go by the largest
// score so far, and when a larger one comes, scale down what was summed up. So keys are read once.
#include <cuda_runtime.h>

#include <cmath>

#include "steps.hpp"

namespace ladder {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
static_assert(kHeadDim == 4 * kWarpSize, "a lane holds one float4 of a row");

__device__ float dot(const float4& a, const float4& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

/// The sum over the warp's lanes, to each of them.
__device__ float warp_sum(float value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// The result of one warp over its positions. A lane holds 4 components of o.
struct WarpResult {
  SoftmaxState state{-INFINITY, 0.0F};
  float4 o{0.0F, 0.0F, 0.0F, 0.0F};  // Σ exp2(score − max) · v, not yet divided by the sum
};

/// One more key: the step of online softmax.
__device__ void take(WarpResult& result, float score, const float4& v) {
  const float max = fmaxf(result.state.max, score);
  const float keep = exp2f(result.state.max - max);  // 0 for the first key, whose max was −inf
  const float weight = exp2f(score - max);
  result.state.max = max;
  result.state.sum = result.state.sum * keep + weight;
  result.o.x = result.o.x * keep + weight * v.x;
  result.o.y = result.o.y * keep + weight * v.y;
  result.o.z = result.o.z * keep + weight * v.z;
  result.o.w = result.o.w * keep + weight * v.w;
}

/// One warp's share of the keys: positions warp, warp + kWarps, …
__device__ WarpResult attend_warp(const Problem<float>& problem, const RequestInfo& request,
                                  const float4& q, int kv_head, int warp, int lane) {
  WarpResult result;
  for (int position = warp; position < request.seq_len; position += kWarps) {
    const int page = get_physical_page(problem, request, position / kPageSize);
    if (page == kNoPage) continue;  // reported: the caller will not use the result
    const std::int64_t at = token_offset(problem, page, position % kPageSize, kv_head);
    const float4 k = reinterpret_cast<const float4*>(problem.k_pages + at)[lane];
    const float4 v = reinterpret_cast<const float4*>(problem.v_pages + at)[lane];
    take(result, warp_sum(dot(q, k)) * kScoreScale, v);
  }
  return result;
}

/// One block: one head of one query against all keys of its request. Eight warps leave eight
/// results over disjoint keys. Two numbers a part, its maximum and its sum, are enough to join them:
/// the fourth step joins parts that different blocks computed by the same rule.
__device__ void attend(const Problem<float>& problem, int request_index, int qo_head) {
  __shared__ SoftmaxState states[kWarps];  // written by each warp's first lane
  __shared__ __align__(sizeof(float4)) float o[kWarps][kHeadDim];  // written by each warp
  const RequestInfo request = problem.requests[request_index];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int kv_head = qo_head / (problem.num_qo_heads / problem.num_kv_heads);
  const std::int64_t row = std::int64_t{request.q_start} * problem.num_qo_heads + qo_head;

  const float4 q = reinterpret_cast<const float4*>(problem.q + row * kHeadDim)[lane];
  const WarpResult result = attend_warp(problem, request, q, kv_head, warp, lane);
  if (lane == 0) states[warp] = result.state;
  reinterpret_cast<float4*>(o[warp])[lane] = result.o;
  __syncthreads();

  const int component = static_cast<int>(threadIdx.x);
  if (component >= kHeadDim) return;
  float max = -INFINITY;
  for (const SoftmaxState& state : states) max = fmaxf(max, state.max);
  float sum = 0.0F;
  float total = 0.0F;
  for (int part = 0; part < kWarps; ++part) {
    const float weight = part_weight(states[part].max, max);
    sum += weight * states[part].sum;
    total += weight * o[part][component];
  }
  problem.o[row * kHeadDim + component] = sum > 0.0F ? total / sum : 0.0F;  // 0: no keys at all
}

/// As in the textbook: one head, so Q is [total_queries, d] and a page is [page_size, d].
__global__ void __launch_bounds__(kThreads) attend_one_head(Problem<float> problem) {
  attend(problem, static_cast<int>(blockIdx.x), 0);
}

/// Heads: a request's heads are independent, so each gets a block. They are also what fills the
/// machine: 32 requests alone keep 32 of an H200's 132 processors busy.
__global__ void __launch_bounds__(kThreads) attend_heads(Problem<float> problem) {
  attend(problem, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x));
}

}  // namespace

void launch_01_one_head(const Problem<float>& problem, cudaStream_t stream) {
  attend_one_head<<<static_cast<unsigned>(problem.batch), kThreads, 0, stream>>>(problem);
}

void launch_01_heads(const Problem<float>& problem, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(problem.num_qo_heads),
                  static_cast<unsigned>(problem.batch));
  attend_heads<<<grid, kThreads, 0, stream>>>(problem);
}

// What is the bottleneck? A position is a chain: table entry, then key, then a sum over 32 lanes,
// then two exponentials, and only then the next position. A warp has one key and one value, 1 KiB,
// on its way at any time and then waits for most of a microsecond. And each key is fetched by the
// four blocks whose heads share it. The next file keeps many pages in flight and fetches each once.

}  // namespace ladder
