// SPDX-License-Identifier: Apache-2.0
// Caches of more than 2³¹ and 2³² elements, whose pages in use lie at the far end: an offset that
// was cut to 32 bits leads elsewhere.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "support/device_append.hpp"
#include "support/device_batch.hpp"

namespace quire {
namespace {

using testing::AppendBatch;
using testing::AppendCase;
using testing::DeviceAppend;
using testing::DeviceBatch;
using testing::DeviceBytes;
using testing::ElementBuffer;
using testing::KeySource;
using testing::kGpu;
using testing::RandomBatch;
using testing::RandomBatchOptions;
using testing::require;
using testing::Stream;

constexpr std::int64_t k2To31 = std::int64_t{1} << 31;
constexpr std::int64_t k2To32 = std::int64_t{1} << 32;

/// Whether the GPU has room for two tensors of this many elements.
bool has_room_for_two(std::int64_t elements, DType dtype) {
  std::size_t free = 0;
  std::size_t total = 0;
  require(cudaMemGetInfo(&free, &total));
  constexpr std::size_t kForTheRest = std::size_t{2} << 30;
  return free >= 2 * static_cast<std::size_t>(elements) * size_of(dtype) + kForTheRest;
}

/// `count` elements on the device, all NaN.
std::unique_ptr<DeviceBytes> nan_elements(std::int64_t count, DType dtype, const Stream& stream) {
  auto elements = std::make_unique<DeviceBytes>(static_cast<std::size_t>(count) * size_of(dtype));
  elements->fill(std::byte{0xFF}, stream);
  return elements;
}

/// Writes host elements [first, first + count) to element `at` of the device's.
void put(const DeviceBytes& to, std::int64_t at, ElementBuffer& from, std::int64_t first,
         std::int64_t count, const Stream& stream) {
  const auto size = static_cast<std::int64_t>(size_of(from.dtype()));
  const std::span<const std::byte> bytes = from.bytes();
  to.upload(
      bytes.subspan(static_cast<std::size_t>(first * size), static_cast<std::size_t>(count * size)),
      static_cast<std::size_t>(at * size), stream);
}

RandomBatchOptions options_of(DType dtype, KvLayout layout) {
  RandomBatchOptions options = testing::exact_options(dtype, 4, 8, 128);
  options.spec.kv_layout = layout;
  options.requests = {{1, 700}, {1, 33}, {20, 100}, {1, 2000}, {3, 64}};
  return options;
}

struct LargeCase {
  DType dtype;
  std::int64_t elements;  ///< of K, and as many of V
};

class GpuLargeCache : public ::testing::TestWithParam<LargeCase> {};

TEST_P(GpuLargeCache, IsReadAtItsFarEndPageByPage) {
  const auto [dtype, elements] = GetParam();
  if (!has_room_for_two(elements, dtype)) GTEST_SKIP() << "the GPU has too little free memory";
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    RandomBatch host(options_of(dtype, layout));
    const ReferenceResult oracle = oracle_of(host);
    const std::int64_t page = host.tensors.k.stride(0);
    const std::int64_t pages = elements / page + host.num_pages;
    const std::int64_t shift = pages - host.num_pages;
    for (std::int32_t& id : host.page_table) {
      if (id >= 0 && id < host.num_pages) id += static_cast<std::int32_t>(shift);
    }
    DeviceBatch batch(host);
    const std::unique_ptr<DeviceBytes> k = nan_elements(pages * page, dtype, batch.stream);
    const std::unique_ptr<DeviceBytes> v = nan_elements(pages * page, dtype, batch.stream);
    put(*k, shift * page, host.k_elements, 0, host.num_pages * page, batch.stream);
    put(*v, shift * page, host.v_elements, 0, host.num_pages * page, batch.stream);
    batch.tensors.k.data = k->data();
    batch.tensors.v.data = v->data();
    batch.tensors.k.shape[0] = batch.tensors.v.shape[0] = pages;
    const Status status = batch.run(Attention(kGpu, host.spec, host.limits()));
    ASSERT_TRUE(status.ok()) << status.message();
    expect_matches(host, oracle);
  }
}

TEST_P(GpuLargeCache, IsReadAtItsFarEndRowByRow) {
  const auto [dtype, elements] = GetParam();
  if (!has_room_for_two(elements, dtype)) GTEST_SKIP() << "the GPU has too little free memory";
  for (const KvLayout layout : {KvLayout::kNHD, KvLayout::kHND}) {
    RandomBatchOptions options = options_of(dtype, layout);
    options.source = KeySource::kContiguous;
    RandomBatch host(options);
    const ReferenceResult oracle = oracle_of(host);
    const std::int64_t heads = host.spec.num_kv_heads;
    const std::int64_t dim = host.spec.head_dim_qk;
    const std::int64_t rows = elements / (heads * dim) + host.page_tokens;
    const std::int64_t shift = rows - host.page_tokens;
    for (std::int32_t& row : host.kv_indptr) row += static_cast<std::int32_t>(shift);
    DeviceBatch batch(host);
    const std::unique_ptr<DeviceBytes> k = nan_elements(rows * heads * dim, dtype, batch.stream);
    const std::unique_ptr<DeviceBytes> v = nan_elements(rows * heads * dim, dtype, batch.stream);
    // One run of rows, or one for each head.
    const bool heads_first = layout == KvLayout::kHND;
    const std::int64_t runs = heads_first ? heads : 1;
    const std::int64_t step = heads_first ? dim : heads * dim;  // from row to row
    for (std::int64_t run = 0; run < runs; ++run) {
      const std::int64_t at = (run * rows + shift) * step;
      const std::int64_t from = run * host.page_tokens * step;
      put(*k, at, host.k_elements, from, host.page_tokens * step, batch.stream);
      put(*v, at, host.v_elements, from, host.page_tokens * step, batch.stream);
    }
    for (TensorView* view : {&batch.tensors.k, &batch.tensors.v}) {
      view->data = view == &batch.tensors.k ? k->data() : v->data();
      view->shape[heads_first ? 1 : 0] = rows;
      if (heads_first) view->strides[0] = rows * dim;
    }
    const Status status = batch.run(Attention(kGpu, host.spec, host.limits()));
    ASSERT_TRUE(status.ok()) << status.message();
    expect_matches(host, oracle);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, GpuLargeCache,
                         ::testing::Values(LargeCase{DType::kBFloat16, k2To31},
                                           LargeCase{DType::kBFloat16, k2To32},
                                           LargeCase{DType::kFloat32, k2To31},
                                           LargeCase{DType::kFloat32, k2To32}),
                         [](const auto& test) {
                           return std::string(to_string(test.param.dtype)) +
                                  (test.param.elements == k2To31 ? "_2_to_31" : "_2_to_32");
                         });

/// Appends to the last pages of a pool that holds `shift` pages more and expects them written.
void expect_appended(AppendBatch& host, std::int64_t shift) {
  const std::int64_t page = host.c.page_size * host.c.heads * host.c.head_dim_qk;
  if (!has_room_for_two((shift + host.c.num_pages) * page, host.c.cache_dtype)) {
    GTEST_SKIP() << "the GPU has too little free memory";
  }
  const auto move_pages = [&](std::int64_t by) {
    for (std::int32_t& id : host.table) id += static_cast<std::int32_t>(by);
    for (std::int64_t& slot : host.slots) slot += slot < 0 ? 0 : by * host.c.page_size;
  };
  move_pages(shift);
  DeviceAppend device(host);
  move_pages(-shift);
  const std::int64_t pages = shift + host.c.num_pages;
  const std::unique_ptr<DeviceBytes> k =
      nan_elements(pages * page, host.c.cache_dtype, device.stream);
  const std::unique_ptr<DeviceBytes> v =
      nan_elements(pages * page, host.c.cache_dtype, device.stream);
  const auto at = static_cast<std::size_t>(shift * page) * size_of(host.c.cache_dtype);
  k->upload(host.k_cache.bytes(), at, device.stream);
  v->upload(host.v_cache.bytes(), at, device.stream);
  device.tensors.k_cache.data = k->data();
  device.tensors.v_cache.data = v->data();
  device.tensors.k_cache.shape[0] = device.tensors.v_cache.shape[0] = pages;
  const Status status = device.append();
  ASSERT_TRUE(status.ok()) << status.message();
  k->download(host.k_cache.bytes(), at, device.stream);
  v->download(host.v_cache.bytes(), at, device.stream);
  host.expect_written();
}

TEST(GpuLargeAppend, WritesToTheFarEndOfAPoolBeyond2To32Elements) {
  AppendCase c;
  c.new_dtype = c.cache_dtype = DType::kBFloat16;
  c.heads = 8;
  c.head_dim_qk = c.head_dim_vo = 128;
  AppendBatch host(c);
  expect_appended(host, k2To32 / (c.page_size * c.heads * c.head_dim_qk));
}

TEST(GpuLargeAppend, WritesToSlotsBeyond2To31) {
  AppendCase c;
  c.new_dtype = c.cache_dtype = DType::kFloat16;
  c.heads = 1;
  c.head_dim_qk = c.head_dim_vo = 8;
  AppendBatch host(c);
  for (std::int64_t row = 0; row < host.total_q; ++row) {
    host.slots.push_back(row % 3 == 1 ? -1 : (row * 5) % 143);
  }
  host.tensors.slot_mapping = TensorView(host.slots.data(), DType::kInt64, {host.total_q});
  host.batch = {};
  expect_appended(host, k2To31 / c.page_size);
}

}  // namespace
}  // namespace quire
