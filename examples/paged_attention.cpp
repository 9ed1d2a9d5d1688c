// SPDX-License-Identifier: Apache-2.0
// Two requests in one call: one decodes its 20th token, one reads a prompt of 5.
#include <cstdint>
#include <cstdio>

#include "quire/attention.hpp"

int main() {
  using quire::DType;
  static float q[6][4][64], o[6][4][64];          // rows of q and o: 1 + 5 new tokens
  static float k[3][16][2][64], v[3][16][2][64];  // the cache: 3 pages of 16 tokens
  const std::int32_t qo_indptr[] = {0, 1, 6}, kv_len[] = {20, 5}, pages[2][2] = {{2, 0}, {1, -1}};
  for (int t = 0; t < 16; ++t) v[2][t][0][0] = v[1][t][0][0] = static_cast<float>(t);

  quire::AttentionSpec spec{.num_qo_heads = 4, .num_kv_heads = 2, .head_dim_qk = 64};
  spec.q_dtype = spec.kv_dtype = DType::kFloat32;
  quire::Batch batch;
  batch.qo_indptr = {qo_indptr, DType::kInt32, {3}};
  batch.kv_len = {kv_len, DType::kInt32, {2}};
  batch.page_table = {pages, DType::kInt32, {2, 2}};
  quire::AttentionTensors tensors;
  tensors.q = {q, DType::kFloat32, {6, 4, 64}};
  tensors.k = {k, DType::kFloat32, {3, 16, 2, 64}};
  tensors.v = {v, DType::kFloat32, {3, 16, 2, 64}};
  tensors.o = {o, DType::kFloat32, {6, 4, 64}};
  quire::attention(quire::Device::cpu(), spec, batch, tensors);

  std::printf("decode %.1f, prompt %.1f %.1f %.1f\n", o[0][0][0], o[1][0][0], o[3][0][0],
              o[5][0][0]);
}
