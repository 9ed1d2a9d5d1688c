// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "batching/batcher_state.hpp"
#include "batching/batchers.hpp"
#include "cache/test_access.hpp"

namespace quire {
namespace {

using test::Batchers;
using test::expect_failure;

// check() is only worth its name if it notices.
class BrokenBatcher : public Batchers {
 protected:
  BrokenBatcher() {
    submit(1, 4, 4);
    submit(2, 4, 4);
    step();
    submit(3, 30, 2);
    submit(4, 30, 2);
  }
  internal::BatcherState& state() { return internal::TestAccess::state(batcher_); }
  void expect_noticed(std::string_view text) {
    expect_failure(batcher_.check(), ErrorCode::kInternal, text);
  }
};

TEST_F(BrokenBatcher, ARunningRequestOutOfOrderIsNoticed) {
  std::swap(state().running[0], state().running[1]);
  expect_noticed("[batcher] check: request 1 runs out of order or is not marked as running");
}

TEST_F(BrokenBatcher, ASequenceOfAnotherLengthIsNoticed) {
  state().at(0).cached = 3;
  expect_noticed("[batcher] check: request 1 has a sequence of 4 tokens, 3 cached, 5 known");
}

TEST_F(BrokenBatcher, ARoomThatTheLastPageDoesNotHaveIsNoticed) {
  state().at(0).tail_room = 1;
  expect_noticed(
      "[batcher] check: request 1 is said to have 1 pages with room for 1 tokens, its 4 tokens "
      "have "
      "others");
}

TEST_F(BrokenBatcher, ALeftOverPartInAStepIsNoticed) {
  state().at(1).step_tokens[0] = 1;
  expect_noticed("[batcher] check: request 2 takes part in a step that is not in flight");
}

TEST_F(BrokenBatcher, ABrokenQueueIsNoticed) {
  state().at(3).prev = internal::BatcherState::kNobody;
  expect_noticed(
      "[batcher] check: request 4 waits out of order, wrongly linked or with a sequence");
}

TEST_F(BrokenBatcher, ALostWaitingRequestIsNoticed) {
  state().newest_waiting = 2;
  state().at(2).next = internal::BatcherState::kNobody;
  expect_noticed("[batcher] check: 1 requests wait, the counter says 2");
}

TEST_F(BrokenBatcher, AnIdThatLeadsNowhereIsNoticed) {
  state().index_of.erase(3);
  expect_noticed("[batcher] check: request 3 is not found by its id");
}

TEST_F(BrokenBatcher, ALostPlaceIsNoticed) {
  state().first_free = internal::BatcherState::kNobody;
  expect_noticed("[batcher] check: 4 places are taken, 0 free, 4 in the lists, 4 known by id");
}

}  // namespace
}  // namespace quire
