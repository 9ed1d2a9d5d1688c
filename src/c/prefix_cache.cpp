// SPDX-License-Identifier: Apache-2.0
// Prefix caches, their leases, listeners and snapshots.
#include "quire/prefix_cache.hpp"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "c/convert.hpp"
#include "c/serving.hpp"
#include "c/structs.hpp"

namespace quire::c {

Status check_array(std::string_view function, std::string_view name, std::string_view type,
                   const void* data, std::size_t count) {
  if (data != nullptr || count == 0) return {};
  return null_argument({function, name, fmt::format("{} [{}]", type, count)});
}

Status check_place(std::string_view function, std::string_view name, std::string_view what,
                   const void* place) {
  return place != nullptr ? Status() : null_argument({function, name, what});
}

Status read_retention(std::string_view function, const quire_retention* given, Retention& out) {
  quire_retention known;
  Status status = read_optional(function, "retention", given, known);
  if (status.ok()) out = {.priority = known.priority, .time_to_live = known.time_to_live};
  return status;
}

void CallbackListener::on_event(const PrefixEvent& event) noexcept {
  const quire_prefix_event told = {.struct_size = sizeof(quire_prefix_event),
                                   .name_space = event.name_space,
                                   .tokens = event.tokens.data(),
                                   .num_tokens = event.tokens.size(),
                                   .kind = static_cast<std::int32_t>(event.kind),
                                   .page = event.page,
                                   .parent = event.parent,
                                   .tier = static_cast<std::int32_t>(event.tier),
                                   .parent_tier = static_cast<std::int32_t>(event.parent_tier),
                                   .reserved = 0};
  listener_(user_, &told);
}

Status create_cache(std::string_view function, quire_page_pool* pool, quire_page_pool* host,
                    const quire_prefix_cache_spec* spec, quire_prefix_cache** out) {
  quire_prefix_cache_spec given;
  Status status = check_result_handle(function, "cache", out);
  if (status.ok()) status = check_handle(function, "pool", pool);
  if (status.ok()) status = read_optional(function, "spec", spec, given);
  if (!status.ok()) return status;
  const PrefixCacheSpec cpp_spec{
      .min_partial_tokens = given.min_partial_tokens,
      .hash_seed = given.hash_seed,
      .costs = {.bytes_per_token = given.bytes_per_token,
                .link_bytes_per_second = given.link_bytes_per_second,
                .transfer_seconds = given.transfer_seconds,
                .prefill_tokens_per_second = given.prefill_tokens_per_second}};
  *out = new quire_prefix_cache(host != nullptr ? PrefixCache(pool->pool, host->pool, cpp_spec)
                                                : PrefixCache(pool->pool, cpp_spec));
  return {};
}

namespace {

static_assert(static_cast<int>(PrefixEvent::Kind::kStored) == QUIRE_PREFIX_STORED);
static_assert(static_cast<int>(PrefixEvent::Kind::kRemoved) == QUIRE_PREFIX_REMOVED);
static_assert(static_cast<int>(PageTier::kDevice) == QUIRE_ON_DEVICE);
static_assert(static_cast<int>(PageTier::kHost) == QUIRE_ON_HOST);

Status get_stats(const quire_prefix_cache* cache, quire_prefix_cache_stats* stats) {
  constexpr std::string_view kFunction = "quire_prefix_cache_get_stats";
  Status status = check_handle(kFunction, "cache", cache);
  if (!status.ok()) return status;
  const PrefixCacheStats now = cache->cache.stats();
  const quire_prefix_cache_stats value = {.struct_size = 0,
                                          .lookups = now.lookups,
                                          .asked_tokens = now.asked_tokens,
                                          .hit_tokens = now.hit_tokens,
                                          .stored = now.stored,
                                          .evicted = now.evicted,
                                          .erased = now.erased,
                                          .pages = now.pages,
                                          .leases = now.leases,
                                          .offloaded = now.offloaded,
                                          .fetched = now.fetched,
                                          .fetched_tokens = now.fetched_tokens,
                                          .declined = now.declined,
                                          .host_evicted = now.host_evicted,
                                          .host_pages = now.host_pages,
                                          .in_flight = now.in_flight};
  return write_struct(kFunction, "stats", value, stats);
}

Status match(quire_prefix_cache* cache, std::uint64_t name_space, const std::int32_t* tokens,
             std::size_t num_tokens, quire_prefix_lease** out) {
  constexpr std::string_view kFunction = "quire_prefix_cache_match";
  Status status = check_result_handle(kFunction, "lease", out);
  if (status.ok()) status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = check_array(kFunction, "tokens", "int32", tokens, num_tokens);
  if (!status.ok()) return status;
  auto lease = std::make_unique<quire_prefix_lease>();  // before the lookup counts as a use
  lease->lease = cache->cache.match(name_space, {tokens, num_tokens});
  *out = lease.release();
  return {};
}

Status copy_pages(const quire_prefix_lease* lease, std::int32_t* pages, std::size_t count) {
  constexpr std::string_view kFunction = "quire_prefix_lease_copy_pages";
  Status status = check_handle(kFunction, "lease", lease);
  if (status.ok()) status = check_array(kFunction, "pages", "int32", pages, count);
  if (!status.ok()) return status;
  if (std::cmp_greater(count, lease->lease.num_pages())) {
    return {ErrorCode::kInvalidArgument,
            fmt::format("[{}] count: expected at most the {} pages of the lease, got {}", kFunction,
                        lease->lease.num_pages(), count)};
  }
  lease->lease.copy_pages({pages, count});
  return {};
}

Status adopt(const quire_prefix_cache* cache, const quire_prefix_lease* lease,
             quire_page_table* table, quire_seq_id* seq) {
  constexpr std::string_view kFunction = "quire_prefix_cache_adopt";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = check_handle(kFunction, "lease", lease);
  if (status.ok()) status = check_handle(kFunction, "table", table);
  if (status.ok()) status = check_place(kFunction, "seq", "a place for the sequence", seq);
  if (!status.ok()) return status;
  const Result<SeqId> adopted = cache->cache.adopt(lease->lease, table->table);
  if (adopted.ok()) *seq = to_c(*adopted);
  return adopted.status();
}

Status store(const Result<std::int32_t>& stored, std::int32_t* num_stored) {
  if (stored.ok() && num_stored != nullptr) *num_stored = *stored;
  return stored.status();
}

Status publish(quire_prefix_cache* cache, std::uint64_t name_space,
               std::span<const std::int32_t> tokens, std::span<const PageId> pages,
               const quire_retention* retention, std::int32_t* num_stored) {
  constexpr std::string_view kFunction = "quire_prefix_cache_publish";
  Retention given;
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) {
    status = check_array(kFunction, "tokens", "int32", tokens.data(), tokens.size());
  }
  if (status.ok()) status = check_array(kFunction, "pages", "int32", pages.data(), pages.size());
  if (status.ok()) status = read_retention(kFunction, retention, given);
  if (!status.ok()) return status;
  return store(cache->cache.publish(name_space, tokens, pages, given), num_stored);
}

Status publish_seq(quire_prefix_cache* cache, std::uint64_t name_space,
                   const quire_page_table* table, SeqId seq, std::span<const std::int32_t> tokens,
                   const quire_retention* retention, std::int32_t* num_stored) {
  constexpr std::string_view kFunction = "quire_prefix_cache_publish_seq";
  Retention given;
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = check_handle(kFunction, "table", table);
  if (status.ok()) {
    status = check_array(kFunction, "tokens", "int32", tokens.data(), tokens.size());
  }
  if (status.ok()) status = read_retention(kFunction, retention, given);
  if (!status.ok()) return status;
  return store(cache->cache.publish(name_space, table->table, seq, tokens, given), num_stored);
}

Status tokens_of(const quire_prefix_cache* cache, PageId page, const std::int32_t** tokens,
                 std::size_t* count) {
  constexpr std::string_view kFunction = "quire_prefix_cache_tokens";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = check_place(kFunction, "tokens", "a place for the tokens", tokens);
  if (status.ok()) status = check_place(kFunction, "count", "a place for their number", count);
  if (!status.ok()) return status;
  const std::span<const std::int32_t> found = cache->cache.tokens(page);
  *tokens = found.data();
  *count = found.size();
  return {};
}

Status set_listener(quire_prefix_cache* cache, quire_prefix_listener listener, void* user) {
  Status status = check_handle("quire_prefix_cache_set_listener", "cache", cache);
  if (!status.ok()) return status;
  std::unique_ptr<CallbackListener> made;
  if (listener != nullptr) made = std::make_unique<CallbackListener>(listener, user);
  cache->cache.set_listener(made.get());
  cache->listener = std::move(made);
  return {};
}

Status save(const quire_prefix_cache* cache, void* bytes, std::size_t capacity,
            std::size_t* num_bytes) {
  constexpr std::string_view kFunction = "quire_prefix_cache_save";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) {
    status = check_place(kFunction, "num_bytes", "a place for the size", num_bytes);
  }
  std::vector<std::byte> saved;
  if (status.ok()) status = cache->cache.save(saved);
  if (!status.ok()) return status;
  *num_bytes = saved.size();
  if (bytes == nullptr) return {};
  if (capacity < saved.size()) {
    return {ErrorCode::kWorkspaceTooSmall,
            fmt::format("[{}] capacity: expected at least {} bytes, got {}", kFunction,
                        saved.size(), capacity)};
  }
  std::memcpy(bytes, saved.data(), saved.size());
  return {};
}

Status restore(quire_prefix_cache* cache, const void* bytes, std::size_t num_bytes,
               quire_restored_page* pages, std::size_t capacity, std::size_t* num_pages) {
  constexpr std::string_view kFunction = "quire_prefix_cache_restore";
  Status status = check_handle(kFunction, "cache", cache);
  if (status.ok()) status = check_array(kFunction, "bytes", "bytes", bytes, num_bytes);
  if (status.ok()) status = check_array(kFunction, "pages", "quire_restored_page", pages, capacity);
  if (status.ok()) {
    status = check_place(kFunction, "num_pages", "a place for their number", num_pages);
  }
  if (!status.ok()) return status;
  if (const std::int64_t free_pages =
          std::int64_t{cache->cache.num_free_pages()} + cache->cache.num_free_host_pages();
      std::cmp_less(capacity, free_pages)) {
    return {ErrorCode::kWorkspaceTooSmall,
            fmt::format("[{}] capacity: expected at least the pool's {} free pages, got {}",
                        kFunction, free_pages, capacity)};
  }
  std::vector<RestoredPage> restored;
  status = cache->cache.restore({static_cast<const std::byte*>(bytes), num_bytes}, restored);
  if (!status.ok()) return status;
  for (std::size_t i = 0; i < restored.size(); ++i) {
    pages[i] = {restored[i].saved, restored[i].page, restored[i].tokens,
                static_cast<std::int32_t>(restored[i].tier)};
  }
  *num_pages = restored.size();
  return {};
}

}  // namespace
}  // namespace quire::c

extern "C" {

quire_status quire_prefix_cache_create(quire_page_pool* pool, const quire_prefix_cache_spec* spec,
                                       quire_prefix_cache** cache) noexcept {
  return quire::c::guarded([&] {
    return quire::c::create_cache("quire_prefix_cache_create", pool, nullptr, spec, cache);
  });
}

void quire_prefix_cache_destroy(quire_prefix_cache* cache) noexcept { quire::c::release(cache); }

quire_status quire_prefix_cache_get_stats(const quire_prefix_cache* cache,
                                          quire_prefix_cache_stats* stats) noexcept {
  return quire::c::guarded([&] { return quire::c::get_stats(cache, stats); });
}

quire_status quire_prefix_cache_match(quire_prefix_cache* cache, uint64_t name_space,
                                      const int32_t* tokens, size_t num_tokens,
                                      quire_prefix_lease** lease) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::match(cache, name_space, tokens, num_tokens, lease); });
}

int32_t quire_prefix_cache_match_length(const quire_prefix_cache* cache, uint64_t name_space,
                                        const int32_t* tokens, size_t num_tokens) noexcept {
  constexpr std::string_view kFunction = "quire_prefix_cache_match_length";
  int32_t found = quire::c::kNone;
  quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle(kFunction, "cache", cache);
    if (status.ok()) {
      status = quire::c::check_array(kFunction, "tokens", "int32", tokens, num_tokens);
    }
    if (status.ok()) found = cache->cache.match_length(name_space, {tokens, num_tokens});
    return status;
  });
  return found;
}

void quire_prefix_lease_destroy(quire_prefix_lease* lease) noexcept { quire::c::release(lease); }

int32_t quire_prefix_lease_num_tokens(const quire_prefix_lease* lease) noexcept {
  return quire::c::number_of("quire_prefix_lease_num_tokens", "lease", lease, quire::c::kNone,
                             [&] { return lease->lease.num_tokens(); });
}

int32_t quire_prefix_lease_num_pages(const quire_prefix_lease* lease) noexcept {
  return quire::c::number_of("quire_prefix_lease_num_pages", "lease", lease, quire::c::kNone,
                             [&] { return lease->lease.num_pages(); });
}

quire_status quire_prefix_lease_copy_pages(const quire_prefix_lease* lease, int32_t* pages,
                                           size_t count) noexcept {
  return quire::c::guarded([&] { return quire::c::copy_pages(lease, pages, count); });
}

quire_status quire_prefix_cache_adopt(const quire_prefix_cache* cache,
                                      const quire_prefix_lease* lease, quire_page_table* table,
                                      quire_seq_id* seq) noexcept {
  return quire::c::guarded([&] { return quire::c::adopt(cache, lease, table, seq); });
}

quire_status quire_prefix_cache_publish(quire_prefix_cache* cache, uint64_t name_space,
                                        const int32_t* tokens, size_t num_tokens,
                                        const int32_t* pages, size_t num_pages,
                                        const quire_retention* retention,
                                        int32_t* num_stored) noexcept {
  return quire::c::guarded([&] {
    return quire::c::publish(cache, name_space, {tokens, num_tokens}, {pages, num_pages}, retention,
                             num_stored);
  });
}

quire_status quire_prefix_cache_publish_seq(quire_prefix_cache* cache, uint64_t name_space,
                                            const quire_page_table* table, quire_seq_id seq,
                                            const int32_t* tokens, size_t num_tokens,
                                            const quire_retention* retention,
                                            int32_t* num_stored) noexcept {
  return quire::c::guarded([&] {
    return quire::c::publish_seq(cache, name_space, table, quire::c::to_cpp(seq),
                                 {tokens, num_tokens}, retention, num_stored);
  });
}

int32_t quire_prefix_cache_evict(quire_prefix_cache* cache, int32_t num_pages) noexcept {
  return quire::c::number_of("quire_prefix_cache_evict", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.evict(num_pages); });
}

int32_t quire_prefix_cache_evict_expired(quire_prefix_cache* cache) noexcept {
  return quire::c::number_of("quire_prefix_cache_evict_expired", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.evict_expired(); });
}

int32_t quire_prefix_cache_erase(quire_prefix_cache* cache, uint64_t name_space) noexcept {
  return quire::c::number_of("quire_prefix_cache_erase", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.erase(name_space); });
}

int32_t quire_prefix_cache_evictable_pages(const quire_prefix_cache* cache) noexcept {
  return quire::c::number_of("quire_prefix_cache_evictable_pages", "cache", cache, quire::c::kNone,
                             [&] { return cache->cache.evictable_pages(); });
}

quire_status quire_prefix_cache_set_time(quire_prefix_cache* cache, int64_t now) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_prefix_cache_set_time", "cache", cache);
    if (status.ok()) cache->cache.set_time(now);
    return status;
  });
}

quire_status quire_prefix_cache_tokens(const quire_prefix_cache* cache, int32_t page,
                                       const int32_t** tokens, size_t* count) noexcept {
  return quire::c::guarded([&] { return quire::c::tokens_of(cache, page, tokens, count); });
}

quire_status quire_prefix_cache_set_listener(quire_prefix_cache* cache,
                                             quire_prefix_listener listener, void* user) noexcept {
  return quire::c::guarded([&] { return quire::c::set_listener(cache, listener, user); });
}

quire_status quire_prefix_cache_save(const quire_prefix_cache* cache, void* bytes, size_t capacity,
                                     size_t* num_bytes) noexcept {
  return quire::c::guarded([&] { return quire::c::save(cache, bytes, capacity, num_bytes); });
}

quire_status quire_prefix_cache_restore(quire_prefix_cache* cache, const void* bytes,
                                        size_t num_bytes, quire_restored_page* pages,
                                        size_t capacity, size_t* num_pages) noexcept {
  return quire::c::guarded(
      [&] { return quire::c::restore(cache, bytes, num_bytes, pages, capacity, num_pages); });
}

quire_status quire_prefix_cache_check(const quire_prefix_cache* cache) noexcept {
  return quire::c::guarded([&] {
    quire::Status status = quire::c::check_handle("quire_prefix_cache_check", "cache", cache);
    return status.ok() ? cache->cache.check() : status;
  });
}

}  // extern "C"
