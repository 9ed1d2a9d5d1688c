// SPDX-License-Identifier: Apache-2.0
/// @file
/// Handles of what serves requests, and the arrays that its functions take and give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "c/handles.hpp"
#include "quire/batch_builder.hpp"
#include "quire/batcher.hpp"
#include "quire/prefix_cache.hpp"
#include "quire/recorder.hpp"
#include "quire/serving.h"

namespace quire::c {

/// A client's callback as a listener.
class CallbackListener final : public PrefixListener {
 public:
  CallbackListener(quire_prefix_listener listener, void* user) : listener_(listener), user_(user) {}
  void on_event(const PrefixEvent& event) noexcept override;

 private:
  quire_prefix_listener listener_;
  void* user_;
};

}  // namespace quire::c

struct quire_prefix_cache {
  quire::c::Kind<"a quire_prefix_cache"> kind = {};
  explicit quire_prefix_cache(quire::PrefixCache made) : cache(std::move(made)) {}
  quire_prefix_cache(const quire_prefix_cache&) = delete;
  quire_prefix_cache& operator=(const quire_prefix_cache&) = delete;
  ~quire_prefix_cache() { cache.set_listener(nullptr); }  // leases and batchers may outlive it

  std::unique_ptr<quire::c::CallbackListener> listener;
  quire::PrefixCache cache;
};

struct quire_prefix_lease {
  quire::c::Kind<"a quire_prefix_lease"> kind = {};
  quire::PrefixLease lease;
};

struct quire_transfer_plan {
  quire::c::Kind<"a quire_transfer_plan"> kind = {};
  quire::TransferPlan plan;
};

struct quire_batch_builder {
  quire::c::Kind<"a quire_batch_builder"> kind = {};
  quire::BatchBuilder builder;
};

struct quire_batcher {
  quire::c::Kind<"a quire_batcher"> kind = {};
  quire::Batcher batcher;
  std::vector<std::uint64_t> ended;  ///< what the last finish wrote
};

struct quire_step_plan {
  quire::c::Kind<"a quire_step_plan"> kind = {};
  quire::StepPlan plan;
};

struct quire_recorder {
  quire::c::Kind<"a quire_recorder"> kind = {};
  quire::Recorder recorder;
};

namespace quire::c {

/// `[function] name: expected type [count], got NULL` for an array that is missing.
Status check_array(std::string_view function, std::string_view name, std::string_view type,
                   const void* data, std::size_t count);

/// Refuses NULL where a result is to be stored. @param what  In words.
Status check_place(std::string_view function, std::string_view name, std::string_view what,
                   const void* place);

/// Makes a cache, with a host tier if `host` is given.
Status create_cache(std::string_view function, quire_page_pool* pool, quire_page_pool* host,
                    const quire_prefix_cache_spec* spec, quire_prefix_cache** out);
/// Gives out a list of copies. @param names  Of the two results.
Status give_copies(std::string_view function, std::string_view ops_name,
                   std::string_view count_name, const std::vector<CopyOp>& copies,
                   const quire_copy_op** ops, std::size_t* count);

Status read_retention(std::string_view function, const quire_retention* given, Retention& out);
Status read_request(std::string_view function, const quire_request* given, Request& out);

}  // namespace quire::c
