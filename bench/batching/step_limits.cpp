// SPDX-License-Identifier: Apache-2.0
// A step's cost on the host must not grow unseen: plan, commit, the arrays in both forms, finish.
//
// Fails where the least of many steps takes longer than what is aimed at (50 µs for 256 sequences of 8,192
// tokens, 200 µs for 1,024) in a block whose rows stay, or than four times that in one that is written anew, or
// where a pool of 1,000,000 pages makes it dearer than one of 10,000 by half. Times are processor times of this thread: others on the machine disturb
// single steps, hardly the least of hundreds; where they take memory away for longer (232 µs were seen once for the 98 of
// another run), a new try is slow only if the step is.
#include <algorithm>
#include <cstdio>
#include <ctime>

#include "batching/engine.hpp"

namespace quire::bench {
namespace {

constexpr int kRepetitions = 400;
constexpr int kTries = 4;
constexpr double kMostGrowth = 1.5;

struct Limit {
  std::int32_t num_seqs;
  std::int32_t num_pages;
  Form form;
  double most_us;
};
constexpr Limit kLimits[] = {{16, 10'000, kUpdated, 4},      {16, 1'000'000, kUpdated, 4},
                             {256, 150'000, kUpdated, 50},   {256, 1'000'000, kUpdated, 50},
                             {1024, 600'000, kUpdated, 200}, {256, 150'000, kBoth, 200},
                             {1024, 600'000, kBoth, 800}};

double thread_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3;
}

double least_step_us(const Limit& limit) {
  Engine engine(limit.num_seqs, limit.num_pages, limit.form);
  double least = 1e9;
  for (int i = 0; i < kRepetitions; ++i) {
    if (engine.is_over()) engine.refill();
    const double begin = thread_us();
    engine.plan();
    const StagedBatch batch = engine.build();
    engine.finish();
    least = std::min(least, thread_us() - begin);
    if (batch.num_seqs != limit.num_seqs || !engine.decodes_all()) return 1e9;
  }
  return least;
}

int run() {
  bool within = true;
  double smallest_pool = 0;
  for (const Limit& limit : kLimits) {
    double us = least_step_us(limit);
    for (int tries = 1; tries < kTries && us > limit.most_us; ++tries) {
      us = std::min(us, least_step_us(limit));
    }
    std::printf("%5d sequences, %8d pages, block %s: %7.2f us, at most %.0f\n", limit.num_seqs,
                limit.num_pages, limit.form == kUpdated ? "patched" : "anew", us, limit.most_us);
    within = within && us <= limit.most_us;
    if (limit.num_seqs != kLimits[0].num_seqs) continue;
    if (smallest_pool == 0) smallest_pool = us;
    if (us <= kMostGrowth * smallest_pool) continue;
    std::printf("expected at most %.1f times the %.2f us of the smallest pool\n", kMostGrowth,
                smallest_pool);
    within = false;
  }
  return within ? 0 : 1;
}

}  // namespace
}  // namespace quire::bench

int main() { return quire::bench::run(); }
