// SPDX-License-Identifier: Apache-2.0
/// @file
/// The hidden state of pools, tables and batchers, to compare it and to break it on purpose.
#pragma once

#include "quire/page_pool.hpp"

namespace quire {
inline namespace v0 {
namespace internal {

struct TestAccess {
  /// State headers of src/cache and src/batching say what it is.
  template <typename Owner>
  static auto& state(Owner& owner) {
    return *owner.state_;
  }
};

}  // namespace internal
}  // namespace v0
}  // namespace quire
