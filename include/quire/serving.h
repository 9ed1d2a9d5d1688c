/* SPDX-License-Identifier: Apache-2.0 */
/** @file
 *  The C ABI of what serves requests around attention: prefix caches, the arrays of a batch,
 *  continuous batching, records of what it did. Under the rules and in the notation of
 *  `quire/quire.h`, which it includes. Compiles as C99 and as C++17.
 *
 *  A page pool and all that is made on it (tables, caches, leases, builders, batchers) have one owner
 *  at a time: no two calls on any of them overlap in time. */
#ifndef QUIRE_SERVING_H_
#define QUIRE_SERVING_H_

#include "quire/quire.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------- Prefix cache --------------------------------------- */

/** Which pages of a pool hold the keys and values of which tokens: a radix tree over runs of
 *  page_size tokens, which are compared one by one. The index holds a reference to each of its
 *  pages; only leaves leave it, expired ones first, then by priority, then the least recently used;
 *  a page that a lease, a sequence or the caller holds is never evicted. All memory is taken by
 *  `quire_prefix_cache_create`; every call that changes a cache is all-or-nothing. */
typedef struct quire_prefix_cache quire_prefix_cache;

/** What a lookup found. While it lives its pages stay in the index and keep their contents. */
typedef struct quire_prefix_lease quire_prefix_lease;

/** How a cache finds prefixes. */
typedef struct quire_prefix_cache_spec {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  uint64_t hash_seed; /**< Of the index; results do not depend on it. Default 0. */
  /** The least tokens of a page that are worth a copy of it, at least 1, the default; more than
   * page_size - 1: only whole pages are matched. */
  int32_t min_partial_tokens;
  int32_t reserved; /**< 0. */
  /** Of a cache with a host tier, as all below: K and V of all layers, > 0; default 131072. */
  double bytes_per_token;
  double link_bytes_per_second;     /**< Between device and host, > 0; default 25e9. */
  double transfer_seconds;          /**< Of a transfer, whatever its size, >= 0; default 50e-6. */
  double prefill_tokens_per_second; /**< > 0; default 20000. */
} quire_prefix_cache_spec;

/** Static initialiser: all defaults. */
#define QUIRE_PREFIX_CACHE_SPEC_INIT \
  {sizeof(quire_prefix_cache_spec), 0, 1, 0, 131072.0, 25e9, 50e-6, 20000.0}

/** Writes `QUIRE_PREFIX_CACHE_SPEC_INIT`. */
QUIRE_API quire_status quire_prefix_cache_spec_init(quire_prefix_cache_spec* spec,
                                                    size_t struct_size) QUIRE_NOEXCEPT;

/** How much a published page is wanted, and for how long. */
typedef struct quire_retention {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  /** How long after its last use a page keeps its priority, in the unit of
   * `quire_prefix_cache_set_time`; after that it is evicted before all that live. 0, the default:
   * for ever. */
  int64_t time_to_live;
  int32_t priority; /**< 0 to 100; lower ones are evicted first. Default 35. */
  int32_t reserved; /**< 0. */
} quire_retention;

/** Static initialiser: all defaults. */
#define QUIRE_RETENTION_INIT {sizeof(quire_retention), 0, 35, 0}

/** Writes `QUIRE_RETENTION_INIT`. */
QUIRE_API quire_status quire_retention_init(quire_retention* retention,
                                            size_t struct_size) QUIRE_NOEXCEPT;

/** Counters since a cache was made, and its present state. */
typedef struct quire_prefix_cache_stats {
  size_t struct_size;     /**< sizeof this struct as the caller knows it. */
  int64_t lookups;        /**< Calls of `quire_prefix_cache_match`. */
  int64_t asked_tokens;   /**< Tokens of all lookups. */
  int64_t hit_tokens;     /**< Those of them that were found. */
  int64_t stored;         /**< Pages of the device that were published into the index. */
  int64_t evicted;        /**< Pages of the device that left the index for want of room or time. */
  int64_t erased;         /**< Pages that `quire_prefix_cache_erase` took out of the index. */
  int32_t pages;          /**< Pages of the device in the index. */
  int32_t leases;         /**< Live leases that hold a page. */
  int64_t offloaded;      /**< Pages that moved to the host. */
  int64_t fetched;        /**< Pages that moved back. */
  int64_t fetched_tokens; /**< Tokens found on these. */
  int64_t declined;       /**< Pages that were left on the host, computing them being quicker. */
  int64_t host_evicted;   /**< Pages of the host that left the index for want of room or time. */
  int32_t host_pages;     /**< Pages of the host in the index. */
  int32_t in_flight;      /**< Copies that have not retired. */
} quire_prefix_cache_stats;

/** Static initialiser: all zero. */
#define QUIRE_PREFIX_CACHE_STATS_INIT \
  {sizeof(quire_prefix_cache_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/** Writes `QUIRE_PREFIX_CACHE_STATS_INIT`. */
QUIRE_API quire_status quire_prefix_cache_stats_init(quire_prefix_cache_stats* stats,
                                                     size_t struct_size) QUIRE_NOEXCEPT;

/** Kinds of `quire_prefix_event`. The values never change. */
enum quire_prefix_event_kind {
  QUIRE_PREFIX_STORED = 0, /**< A page came into the index. */
  QUIRE_PREFIX_REMOVED = 1 /**< A page left it. */
};

/** Where a page of an index is. The values never change. */
enum quire_page_tier {
  QUIRE_ON_DEVICE = 0, /**< In the pool of the device. */
  QUIRE_ON_HOST = 1    /**< In that of the host. */
};

/** A page came into the index or left it. One that moves between device and host comes into the one,
 *  then leaves the other; the pages behind it stay behind it. */
typedef struct quire_prefix_event {
  size_t struct_size;    /**< sizeof this struct as the library knows it. */
  uint64_t name_space;   /**< Whose page it is. */
  const int32_t* tokens; /**< [num_tokens] of this page; valid during the call. */
  size_t num_tokens;     /**< At most page_size. */
  int32_t kind;          /**< A `quire_prefix_event_kind`. */
  int32_t page;          /**< The page. */
  int32_t parent;        /**< The page before it; `QUIRE_NO_PAGE` of a first page. */
  int32_t tier;          /**< A `quire_page_tier`, of `page`. */
  int32_t parent_tier;   /**< Likewise, of `parent`. */
  int32_t reserved;      /**< 0. */
} quire_prefix_event;

/** Hears of a change of the index: parents before their children when pages are stored, after them
 *  when they are removed. May ask the cache, not change it; does not throw or jump. */
typedef void (*quire_prefix_listener)(void* user, const quire_prefix_event* event);

/** A page of a restored index: what page `saved` held when the snapshot was made belongs into page
 *  `page`. */
typedef struct quire_restored_page {
  int32_t saved;  /**< Its id in the snapshot. */
  int32_t page;   /**< Its id now. */
  int32_t tokens; /**< Tokens on it. */
  int32_t tier;   /**< A `quire_page_tier`, of both. */
} quire_restored_page;

/** Makes an empty index over the pages of a pool. A page is in one index at most. O(num_pages).
 *  @param spec  May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` if the spec is out of range, `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_prefix_cache_create(quire_page_pool* pool,
                                                 const quire_prefix_cache_spec* spec,
                                                 quire_prefix_cache** cache) QUIRE_NOEXCEPT;

/** Likewise, with a host tier on the pages of another pool of the same page size, in memory of the host:
 *  pages can be sent there and fetched back. */
QUIRE_API quire_status quire_prefix_cache_create_tiered(quire_page_pool* pool,
                                                        quire_page_pool* host,
                                                        const quire_prefix_cache_spec* spec,
                                                        quire_prefix_cache** cache) QUIRE_NOEXCEPT;

/** Releases a cache. Its pages go back to the pool once no lease and no batcher uses it any more.
 *  Its listener hears of no further event. */
QUIRE_API void quire_prefix_cache_destroy(quire_prefix_cache* cache) QUIRE_NOEXCEPT;

/** Counters and the present state. O(1). @param stats  Written up to its `struct_size`, which the
 *  caller sets. */
QUIRE_API quire_status quire_prefix_cache_get_stats(const quire_prefix_cache* cache,
                                                    quire_prefix_cache_stats* stats) QUIRE_NOEXCEPT;

/** Finds the longest beginning of `tokens` that is in the index on the device, counts as a use of its
 *  pages, of those on the host behind them too, and pins them. An engine that needs the logits of the last token asks without it.
 *  O(num_tokens + log(pages in the index)).
 *  @param name_space  Whose pages may be found: no other's are.
 *  @param tokens      [num_tokens].
 *  @param lease       Receives a lease, one of 0 tokens too. Allocates it.
 *  @return `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_prefix_cache_match(quire_prefix_cache* cache, uint64_t name_space,
                                                const int32_t* tokens, size_t num_tokens,
                                                quire_prefix_lease** lease) QUIRE_NOEXCEPT;

/** @return How many tokens `quire_prefix_cache_match` would find, without counting as a use; -1
 *  (and an error) if an argument is wrong. */
QUIRE_API int32_t quire_prefix_cache_match_length(const quire_prefix_cache* cache,
                                                  uint64_t name_space, const int32_t* tokens,
                                                  size_t num_tokens) QUIRE_NOEXCEPT;

/** Lets the pages of a lease go. O(1). */
QUIRE_API void quire_prefix_lease_destroy(quire_prefix_lease* lease) QUIRE_NOEXCEPT;

/** @return Tokens that were found, -1 (and an error) if `lease` is not a lease. O(1). */
QUIRE_API int32_t quire_prefix_lease_num_tokens(const quire_prefix_lease* lease) QUIRE_NOEXCEPT;

/** @return Pages that hold them, -1 (and an error) if `lease` is not a lease. The last may be
 *  partial, or hold other tokens after these. O(1). */
QUIRE_API int32_t quire_prefix_lease_num_pages(const quire_prefix_lease* lease) QUIRE_NOEXCEPT;

/** Writes the first `count` pages of a lease, in the order of the tokens. O(pages).
 *  @return `QUIRE_INVALID_ARGUMENT` if it has fewer. */
QUIRE_API quire_status quire_prefix_lease_copy_pages(const quire_prefix_lease* lease,
                                                     int32_t* pages, size_t count) QUIRE_NOEXCEPT;

/** @return 0 if all of its pages have been written, else the ticket of a transfer that still writes to
 *  some: they must not be read before it. 0 (and an error) if `lease` is not a lease. O(pages). */
QUIRE_API uint64_t quire_prefix_lease_pending(const quire_prefix_lease* lease) QUIRE_NOEXCEPT;

/** Makes a sequence that begins with the tokens of a lease and shares their pages. If the last page
 *  is partial or holds other tokens too, the first append copies it. The lease is not needed
 *  afterwards. O(pages).
 *  @param table  On the cache's pool.
 *  @return `QUIRE_BAD_HANDLE` (a table of another pool, a lease of another cache or of 0 tokens),
 *    `QUIRE_TOO_LONG` (for the table), `QUIRE_QUEUE_FULL`. */
QUIRE_API quire_status quire_prefix_cache_adopt(const quire_prefix_cache* cache,
                                                const quire_prefix_lease* lease,
                                                quire_page_table* table,
                                                quire_seq_id* seq) QUIRE_NOEXCEPT;

/** Makes the pages of `tokens` known. Where the index has a page with the same tokens in the same
 *  place, that one stays. A partial last page is published too, unless a page of the index begins
 *  with its tokens. O(num_tokens + new pages * log(pages in the index)).
 *  @param tokens      [num_tokens], from the beginning of a sequence on: they have been written, or
 *                     are before anything that is ordered after this call reads them.
 *  @param pages       [num_pages], ceil(num_tokens / page_size) of them, in use. Nobody may write to
 *                     their first tokens any more.
 *  @param retention   May be NULL.
 *  @param num_stored  Receives how many came into the index; may be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` (number of pages, retention, a page twice or in an index for
 *    other tokens, a call by a listener), `QUIRE_BAD_HANDLE` (a page that is free or unknown). */
QUIRE_API quire_status quire_prefix_cache_publish(quire_prefix_cache* cache, uint64_t name_space,
                                                  const int32_t* tokens, size_t num_tokens,
                                                  const int32_t* pages, size_t num_pages,
                                                  const quire_retention* retention,
                                                  int32_t* num_stored) QUIRE_NOEXCEPT;

/** Likewise, the pages of a sequence. If it goes on in a page that was published, its next append
 *  copies that page.
 *  @param tokens  [num_tokens], the first tokens of the sequence, no more than it has.
 *  @return Likewise; `QUIRE_BAD_HANDLE` (a table of another pool, not a live sequence). */
QUIRE_API quire_status quire_prefix_cache_publish_seq(
    quire_prefix_cache* cache, uint64_t name_space, const quire_page_table* table, quire_seq_id seq,
    const int32_t* tokens, size_t num_tokens, const quire_retention* retention,
    int32_t* num_stored) QUIRE_NOEXCEPT;

/** Gives up to `num_pages` pages back to the pool. What hangs on them on the host leaves the index with
 *  them. O(log(pages in the index)) a page, and as much for each leaf that is passed over because
 *  somebody holds it.
 *  @return How many were given back, 0 if a listener asks, -1 (and an error) if `cache` is none. */
QUIRE_API int32_t quire_prefix_cache_evict(quire_prefix_cache* cache,
                                           int32_t num_pages) QUIRE_NOEXCEPT;

/** Gives the expired pages of both tiers back that no living page hangs on. @return As `…_evict`. */
QUIRE_API int32_t quire_prefix_cache_evict_expired(quire_prefix_cache* cache) QUIRE_NOEXCEPT;

/** Takes the pages of a namespace out of the index, of both tiers, those in use by sequences too (they keep them).
 *  What a lease holds stays. O(num_pages of the pool).
 *  @return How many left the index, -1 (and an error) if `cache` is none. */
QUIRE_API int32_t quire_prefix_cache_erase(quire_prefix_cache* cache,
                                           uint64_t name_space) QUIRE_NOEXCEPT;

/** @return Pages that `…_evict` could give back now, -1 (and an error) if `cache` is none.
 *  O(num_pages of the pool). */
QUIRE_API int32_t quire_prefix_cache_evictable_pages(const quire_prefix_cache* cache)
    QUIRE_NOEXCEPT;

/** Says what time it is, in any unit; 0 at first, and a time before the last one is ignored. Without
 *  it no page expires. O(1). */
QUIRE_API quire_status quire_prefix_cache_set_time(quire_prefix_cache* cache,
                                                   int64_t now) QUIRE_NOEXCEPT;

/** The tokens of a page of this index. O(1).
 *  @param tokens  Receives [count] tokens, valid until the page leaves the index; NULL and 0 if it
 *                 is not in it. */
QUIRE_API quire_status quire_prefix_cache_tokens(const quire_prefix_cache* cache, int32_t page,
                                                 const int32_t** tokens,
                                                 size_t* count) QUIRE_NOEXCEPT;

/** @param listener  Called for every change of the index until the cache is destroyed; NULL for none.
 *  @param user      Given to it. */
QUIRE_API quire_status quire_prefix_cache_set_listener(quire_prefix_cache* cache,
                                                       quire_prefix_listener listener,
                                                       void* user) QUIRE_NOEXCEPT;

/** Writes the index (not the pages' contents) as bytes, the same on every machine. Allocates.
 *  @param bytes     [capacity]; NULL asks for the size alone.
 *  @param num_bytes Receives the size, also where `capacity` is too small.
 *  @return `QUIRE_WORKSPACE_TOO_SMALL` (nothing but the size is written), `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_prefix_cache_save(const quire_prefix_cache* cache, void* bytes,
                                               size_t capacity, size_t* num_bytes) QUIRE_NOEXCEPT;

/** Fills an empty index from what `…_save` wrote, on new pages of the pools, each in its tier: of those
 *  on the host, as many of the most recently used as it has room for. Allocates.
 *  @param bytes     [num_bytes], not trusted: anything may be in them.
 *  @param pages     Receives what to load where: [capacity], at least the pools' free pages.
 *  @param num_pages Receives how many of them there are.
 *  @return `QUIRE_INVALID_ARGUMENT` (the index is not empty, a call by a listener, the bytes are
 *    damaged or those of another page size), `QUIRE_OUT_OF_PAGES`, `QUIRE_WORKSPACE_TOO_SMALL`
 *    (`capacity`), `QUIRE_OUT_OF_MEMORY`. Nothing has changed then. */
QUIRE_API quire_status quire_prefix_cache_restore(quire_prefix_cache* cache, const void* bytes,
                                                  size_t num_bytes, quire_restored_page* pages,
                                                  size_t capacity,
                                                  size_t* num_pages) QUIRE_NOEXCEPT;

/** Recomputes what must always hold, the pool's invariants included. O(num_pages * log). Allocates.
 *  @return `QUIRE_INTERNAL` with the first violation. */
QUIRE_API quire_status quire_prefix_cache_check(const quire_prefix_cache* cache) QUIRE_NOEXCEPT;

/* ---------------------------------------- Host tier ------------------------------------------ */

/** Copies between the device and the host: a ticket and two lists, of which the offloads are executed
 *  before the fetches. Otherwise ops do not depend on one another, nor do plans that have not retired. */
typedef struct quire_transfer_plan quire_transfer_plan;

/** Makes an empty plan. */
QUIRE_API quire_status quire_transfer_plan_create(quire_transfer_plan** plan) QUIRE_NOEXCEPT;

/** Releases a plan. */
QUIRE_API void quire_transfer_plan_destroy(quire_transfer_plan* plan) QUIRE_NOEXCEPT;

/** Forgets ops and ticket; the memory is kept. */
QUIRE_API quire_status quire_transfer_plan_clear(quire_transfer_plan* plan) QUIRE_NOEXCEPT;

/** @return What `quire_prefix_cache_retire` is told; 0 if there is nothing to retire, and (with an
 *  error) if `plan` is not a plan. */
QUIRE_API uint64_t quire_transfer_plan_ticket(const quire_transfer_plan* plan) QUIRE_NOEXCEPT;

/** From pages of the device to pages of the host. @param ops  Receives [count] of them, valid until the
 *  plan changes. */
QUIRE_API quire_status quire_transfer_plan_offloads(const quire_transfer_plan* plan,
                                                    const quire_copy_op** ops,
                                                    size_t* count) QUIRE_NOEXCEPT;

/** From pages of the host to pages of the device. @param ops  Likewise. */
QUIRE_API quire_status quire_transfer_plan_fetches(const quire_transfer_plan* plan,
                                                   const quire_copy_op** ops,
                                                   size_t* count) QUIRE_NOEXCEPT;

/** What the host has of a prefix, behind what the device has of it. */
typedef struct quire_host_match {
  int32_t tokens;         /**< Of the prefix. */
  int32_t pages;          /**< That hold them: a fetch takes as many of the device. */
  int32_t worth_fetching; /**< 1: sooner there than computed, by the costs of the spec. */
} quire_host_match;

/** Sends up to `num_pages` pages that `quire_prefix_cache_evict` would give back to the host. Where the
 *  host is full, the least wanted leaf there makes room for what is wanted more; what is not worth it is
 *  evicted. A page that moves is in use until its copy has retired.
 *  @param plan      Receives the copies, and a ticket if it has none.
 *  @param num_gone  Receives how many left the device; may be NULL.
 *  @return `QUIRE_OUT_OF_MEMORY`. Nothing has changed then. */
QUIRE_API quire_status quire_prefix_cache_offload(quire_prefix_cache* cache, int32_t num_pages,
                                                  quire_transfer_plan* plan,
                                                  int32_t* num_gone) QUIRE_NOEXCEPT;

/** What the host has of a prefix, as far as it has been written there. O(num_tokens + log). */
QUIRE_API quire_status quire_prefix_cache_match_host(const quire_prefix_cache* cache,
                                                     uint64_t name_space, const int32_t* tokens,
                                                     size_t num_tokens,
                                                     quire_host_match* found) QUIRE_NOEXCEPT;

/** Moves that to free pages of the device, or does nothing if it is not worth it. A match finds it then.
 *  @param plan         Receives the copies, and a ticket if it has none: they must have run before the
 *                      pages are read, see `quire_prefix_lease_pending`.
 *  @param num_fetched  Receives how many pages moved; may be NULL.
 *  @return `QUIRE_OUT_OF_PAGES`, `QUIRE_OUT_OF_MEMORY`. Nothing has changed then. */
QUIRE_API quire_status quire_prefix_cache_fetch(quire_prefix_cache* cache, uint64_t name_space,
                                                const int32_t* tokens, size_t num_tokens,
                                                quire_transfer_plan* plan,
                                                int32_t* num_fetched) QUIRE_NOEXCEPT;

/** The copies of a plan have been made: what they read may be written, what they wrote may be read.
 *  O(copies in flight).
 *  @return How many were in flight, 0 for a ticket that has retired, -1 (and an error) if `cache` is
 *    none. */
QUIRE_API int32_t quire_prefix_cache_retire(quire_prefix_cache* cache,
                                            uint64_t ticket) QUIRE_NOEXCEPT;

/** Gives up to `num_pages` pages of the host back to its pool. @return As `…_evict`. */
QUIRE_API int32_t quire_prefix_cache_evict_host(quire_prefix_cache* cache,
                                                int32_t num_pages) QUIRE_NOEXCEPT;

/** @return Pages of the device that only copies in flight hold, -1 (and an error) if `cache` is none. */
QUIRE_API int32_t quire_prefix_cache_parked_pages(const quire_prefix_cache* cache) QUIRE_NOEXCEPT;

/* ---------------------------------------- Batches -------------------------------------------- */

/** One request of a step: a sequence whose last `new_tokens` tokens are computed in it. */
typedef struct quire_batch_entry {
  quire_seq_id seq;   /**< A live sequence of the builder's table. */
  int32_t new_tokens; /**< 0 to its length; an append has made room for them. */
} quire_batch_entry;

/** As `pages_per_seq` or `total_pages`: the block is without that form of the table. */
#define QUIRE_OMITTED (-1)

/** Bytes that staging blocks, and each array in them, are aligned to. */
#define QUIRE_STAGING_ALIGNMENT 16

/** The sizes of a batch's arrays. The layout of a block depends on them alone: with a fixed shape
 *  every step's arrays are at the same addresses, as a captured graph wants them. */
typedef struct quire_batch_shape {
  int32_t num_seqs;      /**< Rows of the table; requests beyond the entries are empty. */
  int32_t total_q;       /**< Tokens; slots beyond the entries' tokens are -1. */
  int32_t pages_per_seq; /**< Columns of the dense table, or `QUIRE_OMITTED`. */
  int32_t total_pages;   /**< Entries of `kv_page_indices`, or `QUIRE_OMITTED`. */
} quire_batch_shape;

/** A batch in its block, into which the pointers point. */
typedef struct quire_staged_batch {
  size_t struct_size;              /**< sizeof this struct as the caller knows it. */
  quire_batch_shape shape;         /**< Sizes of the arrays below, padding included. */
  int32_t num_seqs;                /**< Entries; `shape.num_seqs` counts the padding too. */
  int32_t num_tokens;              /**< New tokens; `shape.total_q` counts the padding too. */
  int32_t max_q_len;               /**< Most new tokens of an entry. */
  int32_t max_kv_len;              /**< Longest sequence. */
  const void* bytes;               /**< The part of the block in use: upload this. */
  size_t num_bytes;                /**< Its size. */
  const int32_t* qo_indptr;        /**< [shape.num_seqs + 1] */
  const int32_t* kv_len;           /**< [shape.num_seqs], new tokens included. */
  const int32_t* kv_page_indptr;   /**< [shape.num_seqs + 1]; NULL if omitted. */
  const int32_t* kv_last_page_len; /**< [shape.num_seqs], 0 without pages; NULL if omitted. */
  const int32_t* positions;        /**< [shape.total_q] in the sequence; padding 0. */
  const int64_t* slot_mapping;     /**< [shape.total_q]; padding -1. */
  const int32_t* kv_page_indices;  /**< [shape.total_pages]; NULL if omitted. */
  const int32_t* page_table;       /**< [shape.num_seqs, shape.pages_per_seq]; NULL if omitted. */
} quire_staged_batch;

/** Static initialiser: nothing staged. */
#define QUIRE_STAGED_BATCH_INIT \
  {sizeof(quire_staged_batch),  \
   {0, 0, 0, 0},                \
   0,                           \
   0,                           \
   0,                           \
   0,                           \
   NULL,                        \
   0,                           \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL}

/** Writes `QUIRE_STAGED_BATCH_INIT`. */
QUIRE_API quire_status quire_staged_batch_init(quire_staged_batch* staged,
                                               size_t struct_size) QUIRE_NOEXCEPT;

/** The batch as `quire_attention_schedule` takes it. O(1).
 *  @param base    Where `bytes` was copied to; NULL takes the block itself.
 *  @param device  Where `base` is.
 *  @param csr     1: with the CSR table; 0: with the dense one.
 *  @param batch   Written up to its `struct_size`, which the caller sets.
 *  @return `QUIRE_INVALID_ARGUMENT` if that table was omitted. */
QUIRE_API quire_status quire_staged_batch_as_batch(const quire_staged_batch* staged,
                                                   const void* base, quire_device device,
                                                   int32_t csr, quire_batch* batch) QUIRE_NOEXCEPT;

/** `slot_mapping` as `quire_append` takes it. O(1). @param base, device  Likewise. */
QUIRE_API quire_status quire_staged_batch_slots(const quire_staged_batch* staged, const void* base,
                                                quire_device device,
                                                quire_tensor* slots) QUIRE_NOEXCEPT;

/** Builds batches from the sequences of one table, in one block of bytes each. Allocates when it is
 *  made only. */
typedef struct quire_batch_builder quire_batch_builder;

/** Makes a builder, which keeps the state of the table alive. @return `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_batch_builder_create(const quire_page_table* table,
                                                  quire_batch_builder** builder) QUIRE_NOEXCEPT;

/** Releases a builder. */
QUIRE_API void quire_batch_builder_destroy(quire_batch_builder* builder) QUIRE_NOEXCEPT;

/** @return Bytes of a block for `shape`, and enough for every shape that is nowhere larger; 0 if a
 *  size is out of range. O(1). */
QUIRE_API size_t quire_staging_size(quire_batch_shape shape) QUIRE_NOEXCEPT;

/** The smallest shape that holds the entries, both tables included. O(entries + pages of new
 *  tokens). @param entries  [count]. @return As `quire_batch_builder_build`. */
QUIRE_API quire_status quire_batch_builder_tight_shape(quire_batch_builder* builder,
                                                       const quire_batch_entry* entries,
                                                       size_t count,
                                                       quire_batch_shape* shape) QUIRE_NOEXCEPT;

/** Writes the entries' arrays into `staging`. Every byte of `staged->bytes` is written.
 *  O(entries + tokens + entries of the tables). Does not allocate.
 *  @param entries  [count].
 *  @param shape    What the arrays are padded to; NULL takes the tight one.
 *  @param staging  [staging_bytes], at least `quire_staging_size(shape)`, aligned to
 *                  `QUIRE_STAGING_ALIGNMENT`.
 *  @param staged   Written up to its `struct_size`, which the caller sets.
 *  @return `QUIRE_BAD_HANDLE`, `QUIRE_INVALID_ARGUMENT` (a sequence twice, new tokens outside 0 to
 *    length or in a page that the sequence shares), `QUIRE_TOO_LONG` (does not fit the shape, or
 *    int32), `QUIRE_WORKSPACE_TOO_SMALL` (size or alignment). `staging` is untouched then. */
QUIRE_API quire_status quire_batch_builder_build(quire_batch_builder* builder,
                                                 const quire_batch_entry* entries, size_t count,
                                                 const quire_batch_shape* shape, void* staging,
                                                 size_t staging_bytes,
                                                 quire_staged_batch* staged) QUIRE_NOEXCEPT;

/** As `quire_batch_builder_build`, into a block that still holds what the last call of this builder
 *  wrote there, with the same shape: of the tables only what has changed since is written. If the last
 *  call wrote elsewhere, or with another shape, everything is. The bytes are those that it would write. A
 *  builder knows one block; with two in turn, take two builders. Sequences are best kept in their
 *  order. O(entries + tokens + sizes of the shape but the tables' + entries of the tables that
 *  change or move). Does not allocate.
 *  @param shape    Not NULL.
 *  @param staging  [staging_bytes], likewise. Nobody else may have written to the bytes of the last
 *                  call since.
 *  @return As `quire_batch_builder_build`. */
QUIRE_API quire_status quire_batch_builder_update(quire_batch_builder* builder,
                                                  const quire_batch_entry* entries, size_t count,
                                                  const quire_batch_shape* shape, void* staging,
                                                  size_t staging_bytes,
                                                  quire_staged_batch* staged) QUIRE_NOEXCEPT;

/** Finds which entries' tables begin with the same pages, as `quire_batch` takes it beside the tables, so
 *  that `quire_attention_schedule` compares none. Looks at entries that may share, of 1 to 64 new
 *  tokens, and at the whole pages before these. O(entries * log entries + pages of prefixes, for each
 *  entry that has them). Does not allocate.
 *  @param num_seqs  Of the batch's shape: at least the entries.
 *  @param leaders   Written: [QUIRE_MAX_PREFIX_LEVELS, num_seqs], `quire_batch::prefix_leaders`, -1
 *                   beyond the entries.
 *  @param pages     Written: likewise, `quire_batch::prefix_pages`, 0 where there is no group.
 *  @return As `quire_batch_builder_build`; `QUIRE_TOO_LONG` if num_seqs is too small. Both are
 *    untouched then. */
QUIRE_API quire_status quire_batch_builder_find_prefixes(quire_batch_builder* builder,
                                                         const quire_batch_entry* entries,
                                                         size_t count, int32_t num_seqs,
                                                         int32_t* leaders,
                                                         int32_t* pages) QUIRE_NOEXCEPT;

/* ---------------------------------------- Continuous batching -------------------------------- */

/** Continuous batching as pure bookkeeping: requests go in, step plans come out, and pages change
 *  hands when a plan is committed. A step is plan, commit, execute the copies, build, run, finish.
 *
 *  First come, first served, with priorities that bound the wait; chunked prefill mixed with
 *  decodes; preemption by recompute, or by swap where the prefix cache has a host tier; with a cache, requests begin with the pages that it has
 *  and leave theirs in it. docs/concepts/batching.md explains, docs/concepts/contract.md says who
 *  may change what. */
typedef struct quire_batcher quire_batcher;

/** A step: who computes what, and who has to make room. It changes nothing by itself. Reuse one from
 *  step to step and it stops allocating. */
typedef struct quire_step_plan quire_step_plan;

/** How much a batcher holds. */
typedef struct quire_batcher_spec {
  size_t struct_size;   /**< sizeof this struct as the caller knows it. */
  int32_t max_requests; /**< Waiting and running, at least 1; default 65536. */
  /** Pages that must stay free when a request is admitted while others run, at least 0, the
   * default: room for those to grow, so that fewer are preempted. */
  int32_t watermark_pages;
  /** 1, the default, or 2: the next step may be planned and committed while one runs. */
  int32_t max_steps_in_flight;
  /** With a prefix cache and window tables: ends of prefixes whose window is kept in each of these, for
   * other requests to go on from, at least 0, the default. */
  int32_t cached_windows;
} quire_batcher_spec;

/** Static initialiser: all defaults. */
#define QUIRE_BATCHER_SPEC_INIT {sizeof(quire_batcher_spec), 65536, 0, 1, 0}

/** Writes `QUIRE_BATCHER_SPEC_INIT`. */
QUIRE_API quire_status quire_batcher_spec_init(quire_batcher_spec* spec,
                                               size_t struct_size) QUIRE_NOEXCEPT;

/** What is asked for: a prompt to be continued. */
typedef struct quire_request {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  uint64_t id;        /**< The caller's; unique among the requests not yet ended. */
  double arrival;     /**< Any unit. Earlier goes first; ties in the order of submit. Default 0. */
  double head_start;  /**< It goes as if it had arrived so much earlier. Finite; default 0. */
  /** [prompt_tokens], copied: what a prefix cache goes by. NULL, the default: it shares nothing. */
  const int32_t* prompt;
  uint64_t name_space;         /**< Whose pages of the prefix cache it may share. Default 0. */
  int32_t prompt_tokens;       /**< At least 1: no default. */
  int32_t max_new_tokens;      /**< At least 1: no default. The last one is never cached. */
  int64_t time_to_live;        /**< Of what it leaves in the prefix cache: see `quire_retention`. */
  int32_t priority;            /**< Likewise; default 35. */
  int32_t num_further_samples; /**< Default 0. */
  /** [num_further_samples], read by submit: ids of further samples of the prompt. From the step on that
   * samples the first token, which then samples one for each, they are requests of their own that share
   * the prompt's pages. */
  const uint64_t* further_samples;
} quire_request;

/** Static initialiser: all defaults. */
#define QUIRE_REQUEST_INIT {sizeof(quire_request), 0, 0.0, 0.0, NULL, 0, 0, 0, 0, 35, 0, NULL}

/** Writes `QUIRE_REQUEST_INIT`. */
QUIRE_API quire_status quire_request_init(quire_request* request,
                                          size_t struct_size) QUIRE_NOEXCEPT;

/** How large a step may be. */
typedef struct quire_step_budget {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  int32_t max_tokens; /**< New tokens of the step, at least 1; default 2048. */
  int32_t max_seqs;   /**< Requests running at the same time, at least 1; default 256. */
} quire_step_budget;

/** Static initialiser: all defaults. */
#define QUIRE_STEP_BUDGET_INIT {sizeof(quire_step_budget), 2048, 256}

/** Writes `QUIRE_STEP_BUDGET_INIT`. */
QUIRE_API quire_status quire_step_budget_init(quire_step_budget* budget,
                                              size_t struct_size) QUIRE_NOEXCEPT;

/** One request's share of a step. */
typedef struct quire_step_item {
  uint64_t request;       /**< `quire_request::id`. */
  int32_t index;          /**< 0 to max_requests - 1, the request's own until it ends. */
  quire_seq_id seq;       /**< Its sequence. Of an admitted request: set by commit. */
  int32_t position;       /**< Of the first new token. */
  int32_t num_new_tokens; /**< At least 1. */
  int32_t num_samples;    /**< Tokens that its last row yields: see `samples`. */
  uint8_t is_prefill;     /**< 1: computes more than the token sampled last. */
  uint8_t samples;  /**< 1: its last row yields its next token; if the first, also its samples'. */
  uint8_t admitted; /**< 1: starts, or restarts; what is before `position` was found. */
  /** 1: its last new token is the one that the step in flight samples, which the host does not know. */
  uint8_t awaits_token;
} quire_step_item;

/** Counters since a batcher was made, and its present state. */
typedef struct quire_batcher_stats {
  size_t struct_size;        /**< sizeof this struct as the caller knows it. */
  int64_t steps;             /**< Committed. */
  int64_t finished;          /**< Requests. */
  int64_t preemptions;       /**< Times that a request lost its pages. */
  int64_t prefill_tokens;    /**< Computed in prefill, recomputed ones included. */
  int64_t decode_tokens;     /**< Computed in decode. */
  int64_t recomputed_tokens; /**< Cached tokens that preemptions took away. */
  int64_t cancelled;         /**< Requests; not among the finished. */
  int64_t asked_tokens;      /**< Known tokens of the admitted that a prefix cache may have. */
  int64_t hit_tokens;        /**< Those of them that it had: they were not computed. */
  int32_t waiting;           /**< Requests without pages. */
  int32_t running;           /**< Requests with pages. */
  int32_t used_pages;        /**< Pages of the pool in use, by whomever. */
  int32_t idle_pages;        /**< Those of them that only a prefix cache holds. */
  int32_t peak_used_pages;   /**< The most that a step had in use. */
  int32_t reserved;          /**< 0. */
  int64_t
      swaps; /**< Preemptions that left behind what it is quicker to get back than to compute. */
  int64_t fetched_tokens; /**< Those of `hit_tokens` that came from the host. */
} quire_batcher_stats;

/** Static initialiser: all zero. */
#define QUIRE_BATCHER_STATS_INIT \
  {sizeof(quire_batcher_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/** Writes `QUIRE_BATCHER_STATS_INIT`. */
QUIRE_API quire_status quire_batcher_stats_init(quire_batcher_stats* stats,
                                                size_t struct_size) QUIRE_NOEXCEPT;

/** Makes a batcher without requests, whose sequences live in `table`. They may be read and forked
 *  through the table, not changed. It keeps the states of table and cache alive.
 *  @param cache  On the table's pool; NULL: nothing is shared.
 *  @param spec   May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` (the spec is out of range), `QUIRE_BAD_HANDLE` (the cache is on
 *    another pool), `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_batcher_create(quire_page_table* table, quire_prefix_cache* cache,
                                            const quire_batcher_spec* spec,
                                            quire_batcher** batcher) QUIRE_NOEXCEPT;

/** Likewise for a model with layers of several kinds: in each of the window tables, which have pools of
 *  their own and which nobody else uses, a running request has a sequence too, whose pages go back as its
 *  window moves on. The pool of a window table, less what its cached windows take, is divided evenly among
 *  the sequences of `table`, so that no page is ever missing; prefill chunks are as long as the smallest
 *  share allows.
 *  @param windows  [num_windows], each with a window, and at least the sequences and tokens of `table`.
 *  @return Likewise; `QUIRE_INVALID_ARGUMENT` (a table that does not fit, or a share that is too small). */
QUIRE_API quire_status quire_batcher_create_windowed(
    quire_page_table* table, quire_prefix_cache* cache, quire_page_table* const* windows,
    size_t num_windows, const quire_batcher_spec* spec, quire_batcher** batcher) QUIRE_NOEXCEPT;

/** Releases a batcher and destroys the sequences of its requests. */
QUIRE_API void quire_batcher_destroy(quire_batcher* batcher) QUIRE_NOEXCEPT;

/** Queues a request. O(1) if it arrived last. Allowed at any time, also during a step.
 *  @return `QUIRE_INVALID_ARGUMENT` (a count below 1, an arrival that is not a number, an id in use,
 *    a retention out of range), `QUIRE_TOO_LONG` (can never fit the table or the pool),
 *    `QUIRE_QUEUE_FULL`, `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_batcher_submit(quire_batcher* batcher,
                                            const quire_request* request) QUIRE_NOEXCEPT;

/** Gives a request up, whether it waits or runs. If it takes part in steps in flight, it ends with
 *  the last one's finish, which names it among the ended; else at once.
 *  @return `QUIRE_INVALID_ARGUMENT` (an id that is not in use, or was cancelled or stopped before). */
QUIRE_API quire_status quire_batcher_cancel(quire_batcher* batcher,
                                            uint64_t request) QUIRE_NOEXCEPT;

/** Plans the next step. Changes nothing but `plan`, which has no items if there is nothing to do, or
 *  nothing before a step in flight is finished.
 *  @param budget  May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` (a budget below 1, or too many steps are not finished),
 *    `QUIRE_OUT_OF_PAGES`, `QUIRE_QUEUE_FULL` (not even the oldest request fits: others keep pages
 *    or sequences), `QUIRE_BAD_HANDLE` (a sequence was changed behind the batcher's back),
 *    `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_batcher_plan(const quire_batcher* batcher,
                                          const quire_step_budget* budget,
                                          quire_step_plan* plan) QUIRE_NOEXCEPT;

/** Carries a plan out: preempts, admits, appends; sets the items' `seq` and the plan's batch.
 *  @param plan    The last plan. A request submitted since does not matter.
 *  @param copies  Receives the copies to execute before the step.
 *  @return `QUIRE_INVALID_ARGUMENT` (not a plan for this step), `QUIRE_BAD_HANDLE`,
 *    `QUIRE_OUT_OF_PAGES`, `QUIRE_QUEUE_FULL` (pages or sequences were taken since),
 *    `QUIRE_OUT_OF_MEMORY`. Nothing has changed then, but that pages may have been evicted; plan
 *    again. */
QUIRE_API quire_status quire_batcher_commit(quire_batcher* batcher, quire_step_plan* plan,
                                            quire_copy_plan* copies) QUIRE_NOEXCEPT;

/** Ends the oldest step in flight, which `plan` was committed as: each item that samples has one more token; requests
 *  that have all theirs, and the stopped ones, end and give their pages back. O(items + pages).
 *  @param sampled    [num_sampled], the `num_samples` new tokens of each item, in the order of the
 *                    items, so that a prefix cache can share answers too; or NULL and 0.
 *  @param stopped    [num_stopped], ids of sampling items that end here (an end-of-text token).
 *  @param ended      Receives the ids of all requests that ended, in the order of arrival, valid
 *                    until the next call of this function.
 *  @param num_ended  Receives how many.
 *  @return `QUIRE_INVALID_ARGUMENT` (not the committed plan, an id that does not sample in it,
 *    another number of tokens), `QUIRE_OUT_OF_MEMORY`. Nothing has changed then. */
QUIRE_API quire_status quire_batcher_finish(quire_batcher* batcher, const quire_step_plan* plan,
                                            const int32_t* sampled, size_t num_sampled,
                                            const uint64_t* stopped, size_t num_stopped,
                                            const uint64_t** ended,
                                            size_t* num_ended) QUIRE_NOEXCEPT;

/** @return 1 if nothing waits and nothing runs, else 0; -1 (and an error) if `batcher` is none. */
QUIRE_API int32_t quire_batcher_idle(const quire_batcher* batcher) QUIRE_NOEXCEPT;

/** Counters and the present state. O(1). @param stats  Written up to its `struct_size`, which the
 *  caller sets. */
QUIRE_API quire_status quire_batcher_get_stats(const quire_batcher* batcher,
                                               quire_batcher_stats* stats) QUIRE_NOEXCEPT;

/** Recomputes what must always hold, the invariants of table, pool and cache included. Allocates.
 *  @return `QUIRE_INTERNAL` with the first violation. */
QUIRE_API quire_status quire_batcher_check(const quire_batcher* batcher) QUIRE_NOEXCEPT;

/** Makes an empty plan. */
QUIRE_API quire_status quire_step_plan_create(quire_step_plan** plan) QUIRE_NOEXCEPT;

/** Releases a plan. */
QUIRE_API void quire_step_plan_destroy(quire_step_plan* plan) QUIRE_NOEXCEPT;

/** @return Number of the step, from 0 on; 0 (and an error) if `plan` is not a plan. */
QUIRE_API uint64_t quire_step_plan_step(const quire_step_plan* plan) QUIRE_NOEXCEPT;

/** @return New tokens of all items, -1 (and an error) if `plan` is not a plan. */
QUIRE_API int32_t quire_step_plan_num_tokens(const quire_step_plan* plan) QUIRE_NOEXCEPT;

/** Who runs, then who is admitted, by arrival. @param items  Receives [count] of them, valid until
 *  the next plan or commit. */
QUIRE_API quire_status quire_step_plan_items(const quire_step_plan* plan,
                                             const quire_step_item** items,
                                             size_t* count) QUIRE_NOEXCEPT;

/** Those that lose their pages, newest first. @param requests  Receives [count] ids, likewise. */
QUIRE_API quire_status quire_step_plan_preempted(const quire_step_plan* plan,
                                                 const uint64_t** requests,
                                                 size_t* count) QUIRE_NOEXCEPT;

/** The items as `quire_batch_builder_build` takes them, once the plan is committed; empty before.
 *  @param entries  Receives [count] of them, likewise. */
QUIRE_API quire_status quire_step_plan_batch(const quire_step_plan* plan,
                                             const quire_batch_entry** entries,
                                             size_t* count) QUIRE_NOEXCEPT;

/** What a committed step is in a window table: the items as `quire_batch_builder_build` takes them, and
 *  the copies to execute before the step in the layers of that table.
 *  @param window   Its place among the tables that the batcher was made with.
 *  @param entries  Receives [num_entries]. @param ops  Receives [num_ops]. All likewise.
 *  @return `QUIRE_INVALID_ARGUMENT` (a plan that is not committed, or without such a table). */
QUIRE_API quire_status quire_step_plan_window(const quire_step_plan* plan, size_t window,
                                              const quire_batch_entry** entries,
                                              size_t* num_entries, const quire_copy_op** ops,
                                              size_t* num_ops) QUIRE_NOEXCEPT;

/** Of a prefix cache with a host tier: what goes to the host to make room, and what the admitted find
 *  there, once the plan is committed. Executed after the steps before, the offloads first, and before
 *  the copies of commit; it needs no retire.
 *  @param offloads  Receives [num_offloads] ops, likewise. @param fetches  Receives [num_fetches]. */
QUIRE_API quire_status quire_step_plan_transfers(const quire_step_plan* plan,
                                                 const quire_copy_op** offloads,
                                                 size_t* num_offloads,
                                                 const quire_copy_op** fetches,
                                                 size_t* num_fetches) QUIRE_NOEXCEPT;

/* ---------------------------------------- Records -------------------------------------------- */

/** What the steps of a batcher did, kept in a bounded memory. Each call follows the one of the
 *  batcher that it is named after, once that has succeeded. When a kind of record is full, the
 *  oldest makes room and is counted in the losses. No call but create allocates. */
typedef struct quire_recorder quire_recorder;

/** How much a recorder keeps. */
typedef struct quire_recorder_spec {
  size_t struct_size;   /**< sizeof this struct as the caller knows it. */
  int32_t max_events;   /**< At least 1; about 7 a request. Default 262144. */
  int32_t max_steps;    /**< At least 1; default 65536. */
  int32_t max_ended;    /**< Requests that have ended, at least 1; default 65536. */
  int32_t max_requests; /**< Waiting and running, at least 1: as the batcher's; default 65536. */
} quire_recorder_spec;

/** Static initialiser: all defaults. */
#define QUIRE_RECORDER_SPEC_INIT {sizeof(quire_recorder_spec), 262144, 65536, 65536, 65536}

/** Writes `QUIRE_RECORDER_SPEC_INIT`. */
QUIRE_API quire_status quire_recorder_spec_init(quire_recorder_spec* spec,
                                                size_t struct_size) QUIRE_NOEXCEPT;

/** Kinds of `quire_request_event`. The values never change. */
enum quire_event_kind {
  QUIRE_EVENT_SUBMIT = 0, /**< It began to wait. `num_tokens`: of its prompt. */
  QUIRE_EVENT_ADMIT =
      1, /**< It got its first pages, or pages again. `num_tokens`: found in them. */
  QUIRE_EVENT_PREFILL = 2, /**< A chunk of its known tokens was computed. */
  QUIRE_EVENT_DECODE = 3,  /**< The tokens that it sampled last were computed, step after step. */
  QUIRE_EVENT_PREEMPT = 4, /**< It lost its pages. `num_tokens`: cached ones thrown away. */
  QUIRE_EVENT_FINISH = 5   /**< It ended. `num_tokens`: sampled in its whole life. */
};

/** Something that happened to a request at a time, or for some time. Times are the caller's. */
typedef struct quire_request_event {
  uint64_t request;    /**< `quire_request::id`. */
  uint64_t first_step; /**< Number of the step; before the first one also 0. */
  uint64_t last_step;  /**< Another one only for decodes. */
  double begin;        /**< When the first step was committed. */
  double end;          /**< When the last step was finished; `begin` of what takes no time. */
  int32_t position;    /**< Of the first token. */
  int32_t num_tokens;  /**< See `quire_event_kind`; else those computed. */
  uint8_t kind;        /**< A `quire_event_kind`. */
} quire_request_event;

/** What a step was made of, and the state that it left. */
typedef struct quire_step_record {
  uint64_t step;          /**< Its number. */
  double begin;           /**< When it was committed. */
  double end;             /**< When it was finished; `begin` while it is in flight. */
  int64_t cached_tokens;  /**< Of all running requests, those of this step included. */
  int32_t prefill_tokens; /**< Computed in prefill. */
  int32_t decode_tokens;  /**< Computed in decode. */
  int32_t reused_tokens;  /**< The admitted found them in cache. */
  int32_t num_prefills;   /**< Requests that prefill. */
  int32_t num_decodes;    /**< Requests that decode. */
  int32_t num_admitted;   /**< Requests, the ones admitted again included. */
  int32_t num_preempted;  /**< Requests. */
  int32_t num_ended;      /**< Requests. */
  int32_t waiting;        /**< Requests without pages, after the commit. */
  int32_t running;        /**< Requests with pages, after the commit. */
  int32_t used_pages;     /**< Of the pool, by whomever, after the commit. */
} quire_step_record;

/** The life of a request that has ended. A time that the recorder did not see is NaN. */
typedef struct quire_request_record {
  uint64_t request;          /**< `quire_request::id`. */
  double submitted;          /**< When it began to wait. */
  double admitted;           /**< When it first got pages. */
  double first_token;        /**< When the step that sampled its first token was finished. */
  double finished;           /**< When its last step was finished. */
  double longest_gap;        /**< Between two of its tokens; 0 for fewer than two. */
  int32_t prompt_tokens;     /**< 0 if the recorder did not see the submission. */
  int32_t new_tokens;        /**< Sampled. */
  int32_t num_preemptions;   /**< Times that it lost its pages. */
  int32_t recomputed_tokens; /**< Cached tokens that this threw away. */
  int32_t reused_tokens;     /**< Found in cache at its admissions. */
} quire_request_record;

/** How many records of each kind there are, or were lost: displaced by newer ones, or of requests
 *  that were not tracked. */
typedef struct quire_record_counts {
  int64_t events; /**< `quire_request_event`s. */
  int64_t steps;  /**< `quire_step_record`s. */
  int64_t ended;  /**< `quire_request_record`s. */
} quire_record_counts;

/** Makes a recorder without records. @param spec  May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` (the spec is out of range), `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_recorder_create(const quire_recorder_spec* spec,
                                             quire_recorder** recorder) QUIRE_NOEXCEPT;

/** Releases a recorder. */
QUIRE_API void quire_recorder_destroy(quire_recorder* recorder) QUIRE_NOEXCEPT;

/** A batcher has accepted a request. O(1). @param time  Since when it waits: now, or its arrival. */
QUIRE_API quire_status quire_recorder_submitted(quire_recorder* recorder,
                                                const quire_request* request,
                                                double time) QUIRE_NOEXCEPT;

/** `batcher` has committed a plan: its step begins. O(items + preempted). */
QUIRE_API quire_status quire_recorder_committed(quire_recorder* recorder,
                                                const quire_step_plan* plan,
                                                const quire_batcher* batcher,
                                                double time) QUIRE_NOEXCEPT;

/** A batcher has ended a cancelled request at once. (One that takes part in a step in flight is among
 *  those that finish names.) O(1). */
QUIRE_API quire_status quire_recorder_cancelled(quire_recorder* recorder, uint64_t request,
                                                double time) QUIRE_NOEXCEPT;

/** A batcher has finished its oldest step. O(items + ended).
 *  @param ended    [num_ended], what `quire_batcher_finish` wrote.
 *  @param stopped  [num_stopped], what it was given: what they sample in steps that were planned
 *                  ahead does not count. */
QUIRE_API quire_status quire_recorder_finished(quire_recorder* recorder, const uint64_t* ended,
                                               size_t num_ended, const uint64_t* stopped,
                                               size_t num_stopped, double time) QUIRE_NOEXCEPT;

/** How many records there are, and how many were lost. Either result may be NULL. */
QUIRE_API quire_status quire_recorder_counts(const quire_recorder* recorder,
                                             quire_record_counts* kept,
                                             quire_record_counts* lost) QUIRE_NOEXCEPT;

/** Copies what happened to requests, by the time at which it began: `count` events from number
 *  `first` on, 0 being the oldest kept. O(count).
 *  @return `QUIRE_INVALID_ARGUMENT` if there are fewer. */
QUIRE_API quire_status quire_recorder_events(const quire_recorder* recorder, size_t first,
                                             quire_request_event* events,
                                             size_t count) QUIRE_NOEXCEPT;

/** Likewise, the steps. */
QUIRE_API quire_status quire_recorder_steps(const quire_recorder* recorder, size_t first,
                                            quire_step_record* steps, size_t count) QUIRE_NOEXCEPT;

/** Likewise, the requests that have ended, in the order of their end. */
QUIRE_API quire_status quire_recorder_ended(const quire_recorder* recorder, size_t first,
                                            quire_request_record* ended,
                                            size_t count) QUIRE_NOEXCEPT;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* QUIRE_SERVING_H_ */
