// SPDX-License-Identifier: Apache-2.0
// The calls of the step path take no memory. Every allocation of the process, in any thread, passes
// through the functions below, which count.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "c/client.hpp"

namespace {

std::atomic<long> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(bytes)
          : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, 0); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

// Under a sanitizer malloc is the sanitizer's; otherwise what calls it directly is counted too.
#if defined(__SANITIZE_ADDRESS__)
#define QUIRE_COUNTS_MALLOC 0
#elif defined(__has_feature)
#define QUIRE_COUNTS_MALLOC !__has_feature(address_sanitizer)
#else
#define QUIRE_COUNTS_MALLOC 1
#endif
#if QUIRE_COUNTS_MALLOC && defined(__GLIBC__)
extern "C" void* __libc_malloc(std::size_t bytes);
extern "C" void* malloc(std::size_t bytes) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
#endif

namespace quire::c_test {
namespace {

TEST(Allocation, TheCounterCounts) {
  const long before = allocations.load();
  delete new int(1);
  EXPECT_GT(allocations.load(), before);
}

TEST(Allocation, ScheduleRunAppendAndMergeTakeNoMemory) {
  Client client;
  client.create();
  const std::array<std::int64_t, Client::kTotalQ> slots{0, 1, 2, -1};
  quire_append_tensors through_slots = client.append;
  through_slots.slot_mapping = packed(slots.data(), QUIRE_INT64, {Client::kTotalQ});
  quire_executor* pool = nullptr;
  ASSERT_EQ(quire_thread_pool_create(2, &pool), QUIRE_OK);
  quire_attention_options options = QUIRE_ATTENTION_OPTIONS_INIT;
  options.executor = pool;
  options.kernel = "a name that would not fit into a small string";  // not for append and merge

  const auto step = [&] {
    quire_status worst = QUIRE_OK;
    const auto note = [&](quire_status status) { worst = status != QUIRE_OK ? status : worst; };
    note(client.schedule());
    note(client.run());
    note(quire_append(kCpu, QUIRE_LAYOUT_NHD, nullptr, &through_slots, nullptr, &options));
    note(quire_append(kCpu, QUIRE_LAYOUT_NHD, &client.batch, &client.append, nullptr, nullptr));
    note(quire_merge_states(kCpu, &client.merge, nullptr, &options));
    return worst;
  };
  ASSERT_EQ(step(), QUIRE_OK) << quire_last_error();  // threads start, and take what they keep
  const long before = allocations.load();
  const quire_status status = step();
  const long after = allocations.load();
  EXPECT_EQ(status, QUIRE_OK) << quire_last_error();
  EXPECT_EQ(after, before);
  quire_executor_destroy(pool);
}

TEST(Allocation, PageTablesAndCopiesTakeNoMemoryOnceACopyPlanHasGrown) {
  quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
  pool_spec.num_pages = 8;
  pool_spec.page_size = 4;
  quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
  quire_page_pool* pool = nullptr;
  quire_page_table* table = nullptr;
  quire_copy_plan* copies = nullptr;
  quire_fence* fence = nullptr;
  std::array<float, 8 * 4> memory{};
  const quire_copy_tensors cache = {packed(memory.data(), QUIRE_FLOAT32, {8, 4, 1, 1}),
                                    QUIRE_TENSOR_NONE};
  ASSERT_EQ(quire_page_pool_create(&pool_spec, &pool), QUIRE_OK);
  ASSERT_EQ(quire_page_table_create(pool, &table_spec, &table), QUIRE_OK);
  ASSERT_EQ(quire_copy_plan_create(&copies), QUIRE_OK);
  ASSERT_EQ(quire_fence_create(kCpu, &fence), QUIRE_OK);
  const auto step = [&] {
    quire_seq_id seq;
    quire_seq_id forked;
    bool ok = quire_copy_plan_clear(copies) == QUIRE_OK &&
              quire_page_table_create_seq(table, &seq) == QUIRE_OK &&
              quire_page_table_append(table, seq, 6, copies) == QUIRE_OK &&
              quire_page_table_fork_seq(table, seq, 5, &forked) == QUIRE_OK &&
              quire_page_table_append(table, forked, 6, copies) == QUIRE_OK &&
              quire_execute_copies(kCpu, QUIRE_LAYOUT_NHD, quire_copy_plan_ops(copies),
                                   quire_copy_plan_size(copies), &cache, 1, nullptr) == QUIRE_OK &&
              quire_fence_record(fence, nullptr) == QUIRE_OK &&
              quire_fence_synchronize(fence) == QUIRE_OK &&
              quire_page_table_truncate(table, forked, 2) == QUIRE_OK &&
              quire_page_table_destroy_seq(table, forked) == QUIRE_OK &&
              quire_page_table_destroy_seq(table, seq) == QUIRE_OK;
    return ok;
  };
  ASSERT_TRUE(step()) << quire_last_error();
  const long before = allocations.load();
  const bool ok = step();
  const long after = allocations.load();
  EXPECT_TRUE(ok) << quire_last_error();
  EXPECT_EQ(after, before);
  quire_fence_destroy(fence);
  quire_copy_plan_destroy(copies);
  quire_page_table_destroy(table);
  quire_page_pool_destroy(pool);
}

}  // namespace
}  // namespace quire::c_test
