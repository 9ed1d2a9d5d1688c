// SPDX-License-Identifier: Apache-2.0
#include "quire/recorder.hpp"

#include <cmath>
#include <map>
#include <random>

#include "batching/batchers.hpp"
#include "batching/request_index.hpp"
#include "cache/failing_new.hpp"

namespace quire {
namespace {

using test::Batchers;

/// What a test wants to see of an event.
struct Seen {
  EventKind kind;
  std::uint64_t request;
  std::uint64_t first_step;
  std::uint64_t last_step;
  std::int32_t num_tokens;

  friend bool operator==(const Seen&, const Seen&) = default;
};

std::ostream& operator<<(std::ostream& out, const Seen& seen) {
  return out << to_string(seen.kind) << " of " << seen.request << " in " << seen.first_step << "…"
             << seen.last_step << ", " << seen.num_tokens << " tokens";
}

std::vector<Seen> seen(const Recorder& recorder) {
  std::vector<Seen> all;
  const Records<RequestEvent> events = recorder.events();
  for (std::size_t i = 0; i < events.size(); ++i) {
    const RequestEvent& event = events[i];
    all.push_back({event.kind, event.request, event.first_step, event.last_step, event.num_tokens});
  }
  return all;
}

/// A batcher whose steps last one unit of time each, from time 100 on.
class RecordedBatchers : public Batchers {
 protected:
  void submit(std::uint64_t id, std::int32_t prompt, std::int32_t max_new) {
    Batchers::submit(id, prompt, max_new, now_);
    recorder_.submitted({id, prompt, max_new, now_}, now_);
  }
  void step(std::vector<std::uint64_t> stopped = {}) {
    plan(budget_);
    commit();
    recorder_.committed(plan_, batcher_.stats(), now_);
    now_ += 1;
    recorder_.finished(finish(std::move(stopped)), now_);
  }

  double now_ = 100;
  StepBudget budget_{.max_tokens = 100, .max_seqs = 4};
  Recorder recorder_{{.max_events = 64, .max_steps = 32, .max_ended = 8, .max_requests = 4}};
};

TEST_F(RecordedBatchers, ACancelledRequestEndsWhenTheBatcherEndsIt) {
  submit(1, 4, 9);
  ASSERT_TRUE(batcher_.cancel(1).ok());
  recorder_.cancelled(1, now_);  // before any step
  submit(2, 4, 9);
  plan(budget_);
  commit();
  recorder_.committed(plan_, batcher_.stats(), now_);
  ASSERT_TRUE(batcher_.cancel(2).ok());
  now_ += 1;
  recorder_.finished(finish(), now_);
  const Records<RequestRecord> ended = recorder_.ended();
  ASSERT_EQ(ended.size(), 2U);
  EXPECT_EQ(ended[0].request, 1U);
  EXPECT_EQ(ended[0].finished, 100);
  EXPECT_EQ(ended[0].new_tokens, 0);
  EXPECT_EQ(ended[1].request, 2U);
  EXPECT_EQ(ended[1].finished, 101);
}

TEST_F(RecordedBatchers, TheLifeOfARequestIsTold) {
  submit(7, 10, 3);
  budget_.max_tokens = 6;
  while (!batcher_.idle()) step();
  EXPECT_THAT(seen(recorder_),
              testing::ElementsAre(
                  Seen{EventKind::kSubmit, 7, 0, 0, 10}, Seen{EventKind::kAdmit, 7, 0, 0, 0},
                  Seen{EventKind::kPrefill, 7, 0, 0, 6}, Seen{EventKind::kPrefill, 7, 1, 1, 4},
                  Seen{EventKind::kDecode, 7, 2, 3, 2}, Seen{EventKind::kFinish, 7, 3, 3, 3}));
  const RequestEvent decode = recorder_.events()[4];
  EXPECT_EQ(decode.begin, 102);
  EXPECT_EQ(decode.end, 104);
  EXPECT_EQ(decode.position, 10);
  ASSERT_EQ(recorder_.ended().size(), 1);
  const RequestRecord life = recorder_.ended()[0];
  EXPECT_EQ(life.request, 7);
  EXPECT_EQ(life.submitted, 100);
  EXPECT_EQ(life.admitted, 100);
  EXPECT_EQ(life.first_token, 102);
  EXPECT_EQ(life.finished, 104);
  EXPECT_EQ(life.longest_gap, 1);
  EXPECT_EQ(life.prompt_tokens, 10);
  EXPECT_EQ(life.new_tokens, 3);
  EXPECT_EQ(life.time_to_first_token(), 2);
  EXPECT_EQ(life.time_per_token(), 1);
  EXPECT_EQ(recorder_.losses(), RecorderLosses{});
}

TEST_F(RecordedBatchers, AStepIsTold) {
  submit(1, 9, 5);
  submit(2, 3, 5);
  step();
  step();
  now_ = 200;
  submit(3, 4, 1);
  step();
  ASSERT_EQ(recorder_.steps().size(), 3);
  const StepRecord step = recorder_.steps()[2];
  EXPECT_EQ(step.step, 2);
  EXPECT_EQ(step.begin, 200);
  EXPECT_EQ(step.end, 201);
  EXPECT_EQ(step.prefill_tokens, 4);
  EXPECT_EQ(step.num_prefills, 1);
  EXPECT_EQ(step.decode_tokens, 2);
  EXPECT_EQ(step.num_decodes, 2);
  EXPECT_EQ(step.num_admitted, 1);
  EXPECT_EQ(step.num_ended, 1);
  EXPECT_EQ(step.running, 3);
  EXPECT_EQ(step.waiting, 0);
  EXPECT_EQ(step.used_pages, 3 + 2 + 1);
  EXPECT_EQ(step.cached_tokens, 11 + 5 + 4);
}

TEST_F(RecordedBatchers, APreemptionSplitsTheDecodeAndSaysWhatItThrewAway) {
  submit(1, 12, 8);
  submit(2, 12, 8);
  while (!batcher_.idle()) step();
  ASSERT_GT(batcher_.stats().preemptions, 0);
  const std::vector<Seen> all = seen(recorder_);
  const auto of_kind = [&](EventKind kind) {
    std::vector<Seen> found;
    for (const Seen& each : all) {
      if (each.request == 2 && each.kind == kind) found.push_back(each);
    }
    return found;
  };
  ASSERT_EQ(of_kind(EventKind::kPreempt).size(), 1);
  const std::int32_t lost = of_kind(EventKind::kPreempt)[0].num_tokens;
  EXPECT_EQ(lost, batcher_.stats().recomputed_tokens);
  EXPECT_EQ(of_kind(EventKind::kAdmit).size(), 2);
  ASSERT_EQ(of_kind(EventKind::kDecode).size(), 2);
  EXPECT_LT(of_kind(EventKind::kDecode)[0].last_step, of_kind(EventKind::kPreempt)[0].first_step);
  ASSERT_EQ(recorder_.ended().size(), 2);
  EXPECT_EQ(recorder_.ended()[1].num_preemptions, 1);
  EXPECT_EQ(recorder_.ended()[1].recomputed_tokens, lost);
  EXPECT_GT(recorder_.ended()[1].longest_gap, 1);
  EXPECT_EQ(recorder_.ended()[1].new_tokens, 8);
}

TEST_F(RecordedBatchers, WhatFallsOutIsTheOldestAndIsCounted) {
  recorder_ = Recorder({.max_events = 5, .max_steps = 3, .max_ended = 1, .max_requests = 4});
  submit(1, 2, 2);
  submit(2, 2, 6);
  while (!batcher_.idle()) step();
  EXPECT_THAT(seen(recorder_), testing::ElementsAre(Seen{EventKind::kPrefill, 2, 0, 0, 2},
                                                    Seen{EventKind::kDecode, 1, 1, 1, 1},
                                                    Seen{EventKind::kDecode, 2, 1, 5, 5},
                                                    Seen{EventKind::kFinish, 1, 1, 1, 2},
                                                    Seen{EventKind::kFinish, 2, 5, 5, 6}));
  EXPECT_EQ(recorder_.steps()[0].step, 3);
  EXPECT_EQ(recorder_.ended()[0].request, 2);
  EXPECT_EQ(recorder_.losses(), (RecorderLosses{.events = 5, .steps = 3, .ended = 1}));
}

TEST_F(RecordedBatchers, ADecodeWhoseEventFellOutBeginsANewOne) {
  recorder_ = Recorder({.max_events = 2, .max_steps = 3, .max_ended = 1, .max_requests = 4});
  submit(1, 2, 6);
  step();
  step();
  submit(2, 2, 1);
  step();
  EXPECT_THAT(seen(recorder_), testing::ElementsAre(Seen{EventKind::kPrefill, 2, 2, 2, 2},
                                                    Seen{EventKind::kFinish, 2, 2, 2, 1}));
  step();
  EXPECT_EQ(seen(recorder_).back(), (Seen{EventKind::kDecode, 1, 3, 3, 1}));
}

TEST_F(RecordedBatchers, MoreRequestsThanItCanTrackAreCounted) {
  recorder_ = Recorder({.max_events = 64, .max_steps = 8, .max_ended = 8, .max_requests = 1});
  submit(1, 2, 3);
  submit(2, 2, 2);
  while (!batcher_.idle()) step();
  for (const Seen& event : seen(recorder_)) EXPECT_EQ(event.request, 1);
  // Submit, admit, prefill, decode and finish of request 2.
  EXPECT_EQ(recorder_.losses(), (RecorderLosses{.events = 5, .steps = 0, .ended = 1}));
  EXPECT_EQ(recorder_.steps()[1].decode_tokens, 2) << "steps are told in full";
}

TEST_F(RecordedBatchers, AttachedLateItDoesNotInventWhatItDidNotSee) {
  submit(1, 5, 5);
  step();
  step();
  recorder_ = Recorder({.max_events = 64, .max_steps = 8, .max_ended = 8, .max_requests = 4});
  while (!batcher_.idle()) step();
  ASSERT_EQ(recorder_.ended().size(), 1);
  const RequestRecord life = recorder_.ended()[0];
  EXPECT_TRUE(std::isnan(life.submitted));
  EXPECT_TRUE(std::isnan(life.admitted));
  EXPECT_TRUE(std::isnan(life.time_to_first_token()));
  EXPECT_TRUE(std::isnan(life.time_per_token()));
  EXPECT_EQ(life.new_tokens, 3);
  EXPECT_EQ(recorder_.steps()[0].cached_tokens, 7);
  EXPECT_EQ(recorder_.steps().back().cached_tokens, 9);
}

TEST_F(RecordedBatchers, TokensFoundInCacheAtAdmissionAreReused) {
  StepPlan plan;
  plan.items = {{1, 0, {}, 48, 16, 1, true, true, true}};
  recorder_.submitted({1, 64, 1, 0}, 0);
  recorder_.committed(plan, {}, 0);
  recorder_.finished(std::vector<std::uint64_t>{1}, 1);
  EXPECT_EQ(recorder_.steps()[0].reused_tokens, 48);
  EXPECT_EQ(recorder_.steps()[0].prefill_tokens, 16);
  EXPECT_EQ(recorder_.steps()[0].cached_tokens, 64);
  EXPECT_EQ(recorder_.ended()[0].reused_tokens, 48);
  EXPECT_EQ(seen(recorder_)[1], (Seen{EventKind::kAdmit, 1, 0, 0, 48}));
}

TEST_F(RecordedBatchers, RecordingDoesNotAllocate) {
  submit(1, 9, 4);
  plan();
  commit();
  const long before = test::num_allocations();
  recorder_.submitted({2, 3, 4, 0}, now_);
  recorder_.committed(plan_, batcher_.stats(), now_);
  recorder_.finished(std::vector<std::uint64_t>{}, now_);
  EXPECT_EQ(test::num_allocations(), before);
  EXPECT_EQ(recorder_.steps().size(), 1);
}

TEST(Recorder, ASpecOutOfRangeGetsItsSentence) {
  try {
    const Recorder recorder({.max_steps = 0});
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "[recorder] max_steps: expected at least 1, got 0");
  }
}

TEST(Recorder, NamesItsKinds) {
  EXPECT_EQ(to_string(EventKind::kSubmit), "submit");
  EXPECT_EQ(to_string(EventKind::kFinish), "finish");
}

TEST(RequestIndex, FindsWhatAMapFinds) {
  constexpr std::int32_t kMost = 12;
  batching::RequestIndex index(kMost);
  std::map<std::uint64_t, std::int32_t> model;
  std::mt19937 random(1);
  for (std::int32_t i = 0; i < 200000; ++i) {
    const std::uint64_t id = (random() % 32) << (random() % 2 * 40);
    const auto known = model.find(id);
    ASSERT_EQ(index.find(id), known == model.end() ? -1 : known->second) << "after " << i;
    if (known != model.end()) {
      index.erase(id);
      model.erase(known);
    } else if (model.size() < kMost) {
      index.insert(id, i);
      model[id] = i;
    }
  }
}

TEST(Recorder, OverManyRequestsItsSumsAreTheBatchers) {
  PagePool pool({.num_pages = 40, .page_size = 4});
  PageTable table(pool, {.max_seqs = 8, .max_tokens_per_seq = 64});
  Batcher batcher(table, {.max_requests = 16});
  Recorder recorder({.max_requests = 16});
  std::mt19937 random(3);
  StepPlan plan;
  std::vector<CopyOp> copies;
  std::vector<std::uint64_t> ended;
  double now = 0;
  for (std::uint64_t id = 0; id < 500 || !batcher.idle();) {
    for (; id < 500 && random() % 2 == 0; ++id) {
      const Request request{id, static_cast<std::int32_t>(1 + random() % 40),
                            static_cast<std::int32_t>(1 + random() % 20), now};
      if (!batcher.submit(request).ok()) break;
      recorder.submitted(request, now);
    }
    batcher.plan({.max_tokens = 24, .max_seqs = 8}, plan).throw_if_error();
    if (plan.items.empty()) continue;
    batcher.commit(plan, copies).throw_if_error();
    recorder.committed(plan, batcher.stats(), now);
    ASSERT_EQ(batcher.stats().used_pages, recorder.steps().back().used_pages);
    ended.clear();
    batcher.finish(plan, {}, ended).throw_if_error();
    recorder.finished(ended, ++now);
  }
  const BatcherStats stats = batcher.stats();
  ASSERT_GT(stats.preemptions, 0);
  std::map<EventKind, std::int64_t> tokens;
  for (std::size_t i = 0; i < recorder.events().size(); ++i) {
    tokens[recorder.events()[i].kind] += recorder.events()[i].num_tokens;
  }
  EXPECT_EQ(tokens[EventKind::kPrefill], stats.prefill_tokens);
  EXPECT_EQ(tokens[EventKind::kDecode], stats.decode_tokens);
  EXPECT_EQ(tokens[EventKind::kPreempt], stats.recomputed_tokens);
  EXPECT_EQ(recorder.ended().size(), static_cast<std::size_t>(stats.finished));
  EXPECT_EQ(recorder.steps().size(), static_cast<std::size_t>(stats.steps));
  EXPECT_EQ(recorder.losses(), RecorderLosses{});
  std::int64_t preemptions = 0;
  for (std::size_t i = 0; i < recorder.ended().size(); ++i) {
    const RequestRecord& life = recorder.ended()[i];
    preemptions += life.num_preemptions;
    EXPECT_LT(life.submitted, life.first_token);
    EXPECT_LE(life.first_token, life.finished);
  }
  EXPECT_EQ(preemptions, stats.preemptions);
}

}  // namespace
}  // namespace quire
