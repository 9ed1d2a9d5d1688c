// SPDX-License-Identifier: Apache-2.0
/// @file
/// Lets `operator new` of a test executable fail on purpose.
#pragma once

namespace quire::test {

/// While it lives, allocations of this thread fail: the one after the next `allowed`, or that one
/// and all after it.
class FailingNew {
 public:
  enum class Which { kOne, kAllFromThere };

  FailingNew(int allowed, Which which) noexcept;
  ~FailingNew();
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;

  /// @return True if an allocation has failed.
  [[nodiscard]] bool fired() const noexcept;
};

/// @return Calls of `operator new` by this thread so far.
long num_allocations() noexcept;

}  // namespace quire::test
