// SPDX-License-Identifier: Apache-2.0
// What pages, page tables, prefix caches and the arrays of a batch cost the host.
//
//   build/bench/page_benchmark
//
// Arguments of a case: page size, pages of the pool, and what the case says. `worn` is 1 for a pool
// whose free pages are in random order, as those of one that has been in use, 0 for a new one.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "quire/batch_builder.hpp"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"

namespace quire {
namespace {

constexpr std::int32_t kTokens = 8192;         ///< Of a sequence.
constexpr std::int32_t kPromptTokens = 12000;  ///< Of a prompt that is looked up.

PagePool new_pool(const benchmark::State& state) {
  return PagePool({.num_pages = static_cast<std::int32_t>(state.range(1)),
                   .page_size = static_cast<std::int32_t>(state.range(0))});
}

PagePool worn_pool(const benchmark::State& state) {
  PagePool pool = new_pool(state);
  std::vector<PageId> pages(static_cast<std::size_t>(state.range(1)));
  pool.allocate(pages).throw_if_error();
  std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
  pool.release(pages).throw_if_error();
  return pool;
}

void allocate_and_free(benchmark::State& state) {
  PagePool pool = worn_pool(state);
  PageId page = kNoPage;
  for (auto _ : state) {
    pool.allocate({&page, 1}).throw_if_error();
    pool.release(page).throw_if_error();
  }
}
BENCHMARK(allocate_and_free)->Args({16, 10'000})->Args({16, 100'000})->Args({16, 1'000'000});

/// Names a case's arguments, and takes it through the sizes of pools, new and worn.
void over_pools(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"", "", "worn"});
  for (const std::int64_t worn : {0, 1}) {
    for (const std::int64_t pages : {10'000, 100'000, 1'000'000}) {
      benchmark->Args({16, pages, worn});
    }
  }
}

/// Of 8,192 tokens, and the end of the fork.
void fork_and_destroy(benchmark::State& state) {
  PagePool pool = state.range(2) == 1 ? worn_pool(state) : new_pool(state);
  PageTable table(pool, {.max_seqs = 2, .max_tokens_per_seq = kTokens});
  std::vector<CopyOp> copies;
  const SeqId parent = *table.create();
  table.append(parent, kTokens, copies).throw_if_error();
  for (auto _ : state) table.destroy(*table.fork(parent, kTokens)).throw_if_error();
}
BENCHMARK(fork_and_destroy)->Apply(over_pools)->Args({64, 10'000, 1});

/// One token to each of 16 sequences; the time is that of one append, every `page_size`th of which takes a page.
void append(benchmark::State& state) {
  constexpr std::int64_t kSeqs = 16;
  PagePool pool = state.range(2) == 1 ? worn_pool(state) : new_pool(state);
  PageTable table(pool, {.max_seqs = kSeqs, .max_tokens_per_seq = kTokens});
  std::vector<CopyOp> copies;
  std::vector<SeqId> seqs;
  for (std::int64_t i = 0; i < kSeqs; ++i) seqs.push_back(*table.create());
  while (state.KeepRunningBatch(kSeqs)) {
    if (table.length(seqs[0]) == kTokens) {
      for (const SeqId seq : seqs) table.truncate(seq, 0).throw_if_error();
    }
    for (const SeqId seq : seqs) table.append(seq, 1, copies).throw_if_error();
  }
}
BENCHMARK(append)->Apply(over_pools);

/// A prompt of 12,000 tokens that is in the index whole. Third argument: how many such prompts take
/// turns; 1 finds everything in the processor's caches.
void match(benchmark::State& state) {
  PagePool pool = worn_pool(state);
  PrefixCache cache(pool);
  const auto pages_each = static_cast<std::size_t>((kPromptTokens - 1) / state.range(0) + 1);
  std::mt19937 random(1);
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<PageId> pages(pages_each);
  while (pool.allocate(pages).ok()) {
    prompts.emplace_back(kPromptTokens);
    for (std::int32_t& token : prompts.back())
      token = static_cast<std::int32_t>(random() % 100'000);
    cache.publish(0, prompts.back(), pages).status().throw_if_error();
    pool.release(pages).throw_if_error();
  }
  std::size_t next = 0;
  for (auto _ : state) {
    const PrefixLease lease = cache.match(0, prompts[next]);
    if (lease.num_tokens() != kPromptTokens) state.SkipWithError("a miss");
    if (++next == static_cast<std::size_t>(state.range(2))) next = 0;
  }
  state.counters["pages"] = cache.stats().pages;
}
BENCHMARK(match)->Args({16, 10'000, 1})->Args({64, 190'000, 1})->Args({64, 190'000, 1000});

/// Both forms of the tables for a decode of as many sequences as the third argument says.
void build_batch(benchmark::State& state) {
  const auto seqs = static_cast<std::int32_t>(state.range(2));
  PagePool pool = worn_pool(state);
  PageTable table(pool, {.max_seqs = seqs, .max_tokens_per_seq = kTokens});
  BatchBuilder builder(table);
  std::vector<CopyOp> copies;
  std::vector<BatchEntry> entries;
  for (std::int32_t i = 0; i < seqs; ++i) {
    entries.push_back({*table.create(), 1});
    table.append(entries.back().seq, kTokens, copies).throw_if_error();
  }
  const std::int32_t pages = kTokens / table.pool_spec().page_size;
  const BatchShape shape{seqs, seqs, pages, seqs * pages};
  std::vector<std::byte> staging(BatchBuilder::staging_size(shape));
  for (auto _ : state) {
    benchmark::DoNotOptimize(builder.build(entries, shape, staging));
  }
}
BENCHMARK(build_batch)
    ->Args({16, 150'000, 256})
    ->Args({16, 1'000'000, 256})
    ->Args({64, 40'000, 256})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace quire

BENCHMARK_MAIN();
