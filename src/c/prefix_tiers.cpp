// SPDX-License-Identifier: Apache-2.0
// The host tier of prefix caches.
#include <string_view>

#include "c/convert.hpp"
#include "c/serving.hpp"
#include "c/structs.hpp"
#include "quire/prefix_cache.hpp"

namespace quire::c {

Status give_copies(std::string_view function, std::string_view ops_name,
                   std::string_view count_name, const std::vector<CopyOp>& copies,
                   const quire_copy_op** ops, std::size_t* count) {
  Status status = check_place(function, ops_name, "a place for the list", ops);
  if (status.ok()) status = check_place(function, count_name, "a place for its length", count);
  if (!status.ok()) return status;
  *ops = reinterpret_cast<const quire_copy_op*>(copies.data());
  *count = copies.size();
  return {};
}

namespace {

Status create_tiered(quire_page_pool* pool, quire_page_pool* host,
                     const quire_prefix_cache_spec* spec, quire_prefix_cache** out) {
  constexpr std::string_view kFunction = "quire_prefix_cache_create_tiered";
  Status status = check_result_handle(kFunction, "cache", out);
  if (status.ok()) status = check_handle(kFunction, "host", host);
  return status.ok() ? create_cache(kFunction, pool, host, spec, out) : status;
}

Status give(std::string_view function, const quire_transfer_plan* plan,
            std::vector<CopyOp> TransferPlan::* list, const quire_copy_op** ops,
            std::size_t* count) {
  Status status = check_handle(function, "plan", plan);
  return status.ok() ? give_copies(function, "ops", "count", plan->plan.*list, ops, count) : status;
}

Status store(const Result<std::int32_t>& pages, std::int32_t* out) {
  if (pages.ok() && out != nullptr) *out = *pages;
  return pages.status();
}

Status offload(quire_prefix_cache* cache, std::int32_t num_pages, quire_transfer_plan* plan,
               std::int32_t* num_gone) {
  constexpr std::string_view kFunction = "quire_prefix_cache_offload";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = check_handle(kFunction, "plan", plan);
  return status.ok() ? store(cache->cache.offload(num_pages, plan->plan), num_gone) : status;
}

Status match_host(const quire_prefix_cache* cache, std::uint64_t name_space,
                  std::span<const std::int32_t> tokens, quire_host_match* found) {
  constexpr std::string_view kFunction = "quire_prefix_cache_match_host";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) {
    status = check_array(kFunction, "tokens", "int32", tokens.data(), tokens.size());
  }
  if (status.ok()) status = check_place(kFunction, "found", "a place for the match", found);
  if (!status.ok()) return status;
  const HostMatch match = cache->cache.match_host(name_space, tokens);
  *found = {match.tokens, match.pages, match.worth_fetching ? 1 : 0};
  return {};
}

Status fetch(quire_prefix_cache* cache, std::uint64_t name_space,
             std::span<const std::int32_t> tokens, quire_transfer_plan* plan,
             std::int32_t* num_fetched) {
  constexpr std::string_view kFunction = "quire_prefix_cache_fetch";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) {
    status = check_array(kFunction, "tokens", "int32", tokens.data(), tokens.size());
  }
  if (status.ok()) status = check_handle(kFunction, "plan", plan);
  if (!status.ok()) return status;
  return store(cache->cache.fetch(name_space, tokens, plan->plan), num_fetched);
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_prefix_cache_create_tiered(quire_page_pool* pool, quire_page_pool* host,
                                              const quire_prefix_cache_spec* spec,
                                              quire_prefix_cache** cache) noexcept {
  return quire::c::guarded([&] { return quire::c::create_tiered(pool, host, spec, cache); });
}

quire_status quire_transfer_plan_create(quire_transfer_plan** plan) noexcept {
  return quire::c::guarded([&] {
    quire::Status status =
        quire::c::check_result_handle("quire_transfer_plan_create", "plan", plan);
    if (status.ok()) *plan = new quire_transfer_plan{};
    return status;
  });
}

void quire_transfer_plan_destroy(quire_transfer_plan* plan) noexcept { quire::c::release(plan); }

quire_status quire_transfer_plan_clear(quire_transfer_plan* plan) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_transfer_plan_clear", "plan", plan);
    if (status.ok()) plan->plan.clear();
    return status;
  });
}

uint64_t quire_transfer_plan_ticket(const quire_transfer_plan* plan) noexcept {
  return quire::c::number_of("quire_transfer_plan_ticket", "plan", plan, uint64_t{0},
                             [&] { return plan->plan.ticket; });
}

quire_status quire_transfer_plan_offloads(const quire_transfer_plan* plan,
                                          const quire_copy_op** ops, size_t* count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::give("quire_transfer_plan_offloads", plan, &quire::TransferPlan::offloads, ops,
                          count);
  });
}

quire_status quire_transfer_plan_fetches(const quire_transfer_plan* plan, const quire_copy_op** ops,
                                         size_t* count) noexcept {
  return quire::c::guarded([&] {
    return quire::c::give("quire_transfer_plan_fetches", plan, &quire::TransferPlan::fetches, ops,
                          count);
  });
}

quire_status quire_prefix_cache_offload(quire_prefix_cache* cache, int32_t num_pages,
                                        quire_transfer_plan* plan, int32_t* num_gone) noexcept {
  return quire::c::guarded([&] { return quire::c::offload(cache, num_pages, plan, num_gone); });
}

quire_status quire_prefix_cache_match_host(const quire_prefix_cache* cache, uint64_t name_space,
                                           const int32_t* tokens, size_t num_tokens,
                                           quire_host_match* found) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::match_host(cache, name_space, {tokens, num_tokens}, found); });
}

quire_status quire_prefix_cache_fetch(quire_prefix_cache* cache, uint64_t name_space,
                                      const int32_t* tokens, size_t num_tokens,
                                      quire_transfer_plan* plan, int32_t* num_fetched) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::fetch(cache, name_space, {tokens, num_tokens}, plan, num_fetched); });
}

int32_t quire_prefix_cache_retire(quire_prefix_cache* cache, uint64_t ticket) noexcept {
  return quire::c::number_of("quire_prefix_cache_retire", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.retire(ticket); });
}

int32_t quire_prefix_cache_evict_host(quire_prefix_cache* cache, int32_t num_pages) noexcept {
  return quire::c::number_of("quire_prefix_cache_evict_host", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.evict_host(num_pages); });
}

int32_t quire_prefix_cache_parked_pages(const quire_prefix_cache* cache) noexcept {
  return quire::c::number_of("quire_prefix_cache_parked_pages", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.parked_pages(); });
}

uint64_t quire_prefix_lease_pending(const quire_prefix_lease* lease) noexcept {
  return quire::c::number_of("quire_prefix_lease_pending", "lease", lease, uint64_t{0},
                             [&] { return lease->lease.pending(); });
}

quire_status quire_step_plan_transfers(const quire_step_plan* plan, const quire_copy_op** offloads,
                                       size_t* num_offloads, const quire_copy_op** fetches,
                                       size_t* num_fetches) noexcept {
  constexpr std::string_view kFunction = "quire_step_plan_transfers";
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle(kFunction, "plan", plan);
    if (status.ok()) {
      status = quire::c::give_copies(kFunction, "offloads", "num_offloads",
                                     plan->plan.transfers.offloads, offloads, num_offloads);
    }
    if (status.ok()) {
      status = quire::c::give_copies(kFunction, "fetches", "num_fetches",
                                     plan->plan.transfers.fetches, fetches, num_fetches);
    }
    return status;
  });
}

}  // extern "C"
