// SPDX-License-Identifier: Apache-2.0
#include "cache/failing_new.hpp"

#include <cstdlib>
#include <new>

namespace quire::test {
namespace {

struct Failure {
  bool armed = false;
  bool fired = false;
  int allowed = 0;
  FailingNew::Which which = FailingNew::Which::kOne;
};

thread_local Failure failure;
thread_local long allocations = 0;

// Decides about one allocation.
bool fails() noexcept {
  ++allocations;
  if (!failure.armed || failure.allowed-- > 0) return false;
  if (failure.fired && failure.which == FailingNew::Which::kOne) return false;
  failure.fired = true;
  return true;
}

}  // namespace

FailingNew::FailingNew(int allowed, Which which) noexcept {
  failure = {true, false, allowed, which};
}
FailingNew::~FailingNew() { failure = {}; }
bool FailingNew::fired() const noexcept { return failure.fired; }

long num_allocations() noexcept { return allocations; }

}  // namespace quire::test

void* operator new(std::size_t size) {
  void* const memory = quire::test::fails() ? nullptr : std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
