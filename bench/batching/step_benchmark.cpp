// SPDX-License-Identifier: Apache-2.0
// What a step costs the host: plan, commit, the batch's arrays, finish; and to record it.
//
//   build/bench/step_benchmark
//
// Arguments of a case: running sequences, pages of the pool, forms of the page table (0 both, 1 dense, 2 CSR,
// 3 both in a block whose rows stay), sequences that end in each step while others come.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>

#include "batching/engine.hpp"
#include "quire/recorder.hpp"

namespace quire::bench {
namespace {

void refill_if_over(benchmark::State& state, Engine& engine) {
  if (!engine.is_over()) return;
  state.PauseTiming();
  engine.refill();
  state.ResumeTiming();
}

Engine engine_of(const benchmark::State& state) {
  return {static_cast<std::int32_t>(state.range(0)), static_cast<std::int32_t>(state.range(1)),
          static_cast<Form>(state.range(2)), static_cast<std::int32_t>(state.range(3))};
}

/// Plan, commit, build, finish.
void whole_step(benchmark::State& state) {
  Engine engine = engine_of(state);
  for (auto step : state) {
    refill_if_over(state, engine);
    engine.plan();
    benchmark::DoNotOptimize(engine.build().bytes.data());
    engine.finish();
    if (!engine.decodes_all()) state.SkipWithError("a step is not the one to be measured");
  }
  state.SetLabel(std::to_string(kTokens) + " tokens each, page " + std::to_string(kPageSize));
}

/// The same without the arrays.
void plan_and_commit(benchmark::State& state) {
  Engine engine = engine_of(state);
  for (auto step : state) {
    refill_if_over(state, engine);
    engine.plan();
    engine.finish();
  }
}

/// The same with a recorder; the difference is what recording costs.
void plan_commit_and_record(benchmark::State& state) {
  Engine engine = engine_of(state);
  Recorder recorder({.max_requests = static_cast<std::int32_t>(state.range(0))});
  double now = 0;
  for (auto step : state) {
    refill_if_over(state, engine);
    engine.plan();
    recorder.committed(engine.last_plan(), engine.stats(), now);
    engine.finish();
    recorder.finished({}, now += 1);
  }
}

constexpr std::int64_t kSmallPool = 10'000;
constexpr std::int64_t kLargePool = 1'000'000;

BENCHMARK(whole_step)
    ->Unit(benchmark::kMicrosecond)
    ->Args({16, kSmallPool, kUpdated, 0})
    ->Args({16, 100'000, kUpdated, 0})
    ->Args({16, kLargePool, kUpdated, 0})
    ->Args({256, 150'000, kUpdated, 0})
    ->Args({256, kLargePool, kUpdated, 0})
    ->Args({1024, 600'000, kUpdated, 0})
    ->Args({1024, kLargePool, kUpdated, 0})
    ->Args({16, kSmallPool, kBoth, 0})
    ->Args({16, 100'000, kBoth, 0})
    ->Args({16, kLargePool, kBoth, 0})
    ->Args({256, 150'000, kBoth, 0})
    ->Args({256, kLargePool, kBoth, 0})
    ->Args({256, 150'000, kDense, 0})
    ->Args({256, 150'000, kCsr, 0})
    ->Args({1024, 600'000, kBoth, 0})
    ->Args({1024, kLargePool, kBoth, 0})
    ->Args({1024, 600'000, kDense, 0})
    ->Args({1024, 600'000, kCsr, 0})
    ->Args({256, 150'000, kUpdated, 1})
    ->Args({256, 150'000, kBoth, 1})
    ->Args({1024, 600'000, kUpdated, 2})
    ->Args({1024, 600'000, kBoth, 2});
BENCHMARK(plan_and_commit)
    ->Unit(benchmark::kMicrosecond)
    ->Args({16, kSmallPool, kBoth, 0})
    ->Args({256, 150'000, kBoth, 0})
    ->Args({1024, 600'000, kBoth, 0});
BENCHMARK(plan_commit_and_record)
    ->Unit(benchmark::kMicrosecond)
    ->Args({16, kSmallPool, kBoth, 0})
    ->Args({256, 150'000, kBoth, 0})
    ->Args({1024, 600'000, kBoth, 0});

}  // namespace
}  // namespace quire::bench

BENCHMARK_MAIN();
