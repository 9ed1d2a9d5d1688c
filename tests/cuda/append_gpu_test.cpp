// SPDX-License-Identifier: Apache-2.0
// New keys and values into their pages on the GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "support/append_batch.hpp"
#include "support/device_append.hpp"

namespace quire {
namespace {

using testing::AppendBatch;
using testing::AppendCase;
using testing::DeviceAppend;

/// Appends on the GPU and brings the cache back.
void append(AppendBatch& host) {
  const DeviceAppend device(host);
  const Status status = device.append();
  ASSERT_TRUE(status.ok()) << status.message();
  device.download();
}

TEST(GpuAppend, WritesToDerivedSlotsInEveryPairOfDtypesAndLayout) {
  for (const DType from : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const DType to : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
        SCOPED_TRACE(std::string(to_string(from)) + " to " + std::string(to_string(to)));
        AppendCase c;
        c.new_dtype = from;
        c.cache_dtype = to;
        c.layout = layout;
        AppendBatch host(c);
        append(host);
        host.expect_written();
      }
    }
  }
}

TEST(GpuAppend, WritesRowsOfAnyHeadDim) {
  for (const std::int64_t head_dim : {1, 7, 8, 64, 96, 128, 192, 256, 512}) {
    SCOPED_TRACE(head_dim);
    AppendCase c;
    c.new_dtype = c.cache_dtype = DType::kBFloat16;
    c.head_dim_qk = head_dim;
    c.head_dim_vo = head_dim == 192 ? 128 : head_dim;
    AppendBatch host(c);
    append(host);
    host.expect_written();
  }
}

TEST(GpuAppend, WritesToPagesOfAnySize) {
  for (const std::int64_t page_size : {14, 16, 17, 64, 100, 544}) {
    SCOPED_TRACE(page_size);
    AppendCase c;
    c.page_size = page_size;
    AppendBatch host(c);
    append(host);
    host.expect_written();
  }
}

TEST(GpuAppend, WritesToGivenSlotsAndSkipsNegativeOnes) {
  AppendBatch host({});
  for (std::int64_t row = 0; row < host.total_q; ++row) {
    host.slots.push_back(row % 3 == 1 ? -row : (row * 5) % 143);
  }
  host.tensors.slot_mapping = TensorView(host.slots.data(), DType::kInt64, {host.total_q});
  host.batch = {};  // not read
  append(host);
  host.expect_written();
}

TEST(GpuAppend, DividesByTheScales) {
  AppendBatch host({});
  host.k_scale = {0.5F};
  host.v_scale = {4.0F, 4.0F};
  host.tensors.k_scale = TensorView(host.k_scale.data(), DType::kFloat32, {1});
  host.tensors.v_scale = TensorView(host.v_scale.data(), DType::kFloat32, {2});
  append(host);
  host.expect_written(host.k_scale[0], host.v_scale[0]);
}

TEST(GpuAppend, QuantisesWithTheScalesThatAreGiven) {
  for (const DType to : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (const DType from : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const std::int64_t head_dim : {24, 40, 128}) {
        SCOPED_TRACE(std::string(to_string(from)) + " to " + std::string(to_string(to)));
        AppendCase c;
        c.new_dtype = from;
        c.cache_dtype = to;
        c.head_dim_qk = head_dim;
        AppendBatch host(c);
        host.k_scale = {0.02F};
        host.v_scale = {0.004F, 0.004F};  // some saturate int8
        host.tensors.k_scale = TensorView(host.k_scale.data(), DType::kFloat32, {1});
        host.tensors.v_scale = TensorView(host.v_scale.data(), DType::kFloat32, {2});
        append(host);
        host.expect_written(host.k_scale[0], host.v_scale[0]);
      }
    }
  }
}

TEST(GpuAppend, ComputesAScaleForEachTokenAndHeadAsTheCpuDoes) {
  for (const DType to : {DType::kInt8, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (const DType from : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
        SCOPED_TRACE(std::string(to_string(from)) + " to " + std::string(to_string(to)));
        AppendCase c;
        c.new_dtype = from;
        c.cache_dtype = to;
        c.layout = layout;
        c.heads = 5;
        c.head_dim_qk = from == DType::kFloat16 ? 128 : 24;
        AppendBatch host(c);
        host.compute_token_scales();
        append(host);
        host.expect_quantised();
        AppendBatch on_cpu(c);
        on_cpu.compute_token_scales();
        const Status status = quire::append(Device::cpu(), c.layout, on_cpu.batch, on_cpu.tensors);
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_TRUE(std::ranges::equal(host.k_cache.bytes(), on_cpu.k_cache.bytes()));
        EXPECT_TRUE(std::ranges::equal(host.v_cache.bytes(), on_cpu.v_cache.bytes()));
      }
    }
  }
}

TEST(GpuAppend, DerivesSlotsFromCsrTables) {
  AppendBatch host({});
  host.kv_page_indptr = {0, 3, 6, 9, 12};
  host.batch.page_table = {};
  host.batch.kv_page_indptr = TensorView(host.kv_page_indptr.data(), DType::kInt32, {5});
  host.batch.kv_page_indices = TensorView(host.table.data(), DType::kInt32, {12});
  append(host);
  host.expect_written();
}

TEST(GpuAppend, WritesLargeBatches) {
  AppendCase c;
  c.qo_indptr = {0, 1000, 1000, 1900, 1901};
  c.kv_len = {1001, 0, 950, 0};
  c.page_size = 400;
  AppendBatch host(c);
  append(host);
  host.expect_written();
}

TEST(GpuAppend, OfNoRowsWritesNothing) {
  AppendCase c;
  c.qo_indptr = {0, 0, 0, 0, 0};
  AppendBatch host(c);
  append(host);
  host.expect_nothing_written();
}

}  // namespace
}  // namespace quire
