/* SPDX-License-Identifier: Apache-2.0 */
/** @file
 *  The C ABI: attention over paged KV caches for ragged batches, and the page tables around it, for
 *  C, Rust, Go, Python and whatever else calls C. `quire/serving.h` adds prefix caches, continuous
 *  batching and its records. Compiles as C99 and as C++17.
 *
 *  **Rules that hold for every function**
 *  - *Errors.* Functions return a `quire_status`, `QUIRE_OK` or what went wrong, equal to
 *    `quire::ErrorCode`; `quire_last_error()` then holds one sentence: what was expected, what
 *    came, what comes nearest. No exception crosses, nothing prints, aborts or exits. The few
 *    functions that return a number or a string instead say what stands for an error.
 *  - *NULL.* A NULL where a handle, a struct or a result is expected is `QUIRE_INVALID_ARGUMENT`;
 *    parameters that may be NULL say so. `quire_…_destroy(NULL)` does nothing and is no error. A
 *    handle of another kind is `QUIRE_BAD_HANDLE`. Using a handle after its destroy is undefined.
 *  - *On failure* results are left as they were, except that a handle result is set to NULL.
 *  - *Growth.* Structs that may grow begin with `struct_size`. Start each from its
 *    `QUIRE_…_INIT` or `quire_…_init()`, which set it and fill in the defaults; structs of tensors,
 *    where zero is "not given", may be written out as well. A struct shorter than the library's (an
 *    older client) takes the defaults for what it lacks; a longer one (a newer client) is accepted
 *    while the part that the library does not know is zero. Structs without `struct_size` never
 *    change.
 *  - *Memory.* The caller owns every tensor and workspace and keeps it until the work that uses
 *    it has run. Handles are made by `…_create` and released by `…_destroy`; a handle may be
 *    destroyed before the handles made from it. Strings that are returned end in NUL and live
 *    forever, except `quire_last_error()`.
 *  - *Threads.* Attention and executor handles are used from many threads at once. A page pool and
 *    its page tables together have one owner at a time. `quire_last_error()` is each thread's own.
 *  - *The step path* (`quire_attention_schedule`, `quire_attention_run`, `quire_append`,
 *    `quire_merge_states`, `quire_execute_copies`) does not allocate when it succeeds. On CUDA it does not synchronise and
 *    may be captured in a graph.
 *
 *  **Notation of shapes.** `total_q` rows of q (all requests' new tokens after one another, then
 *  padding), `num_seqs` requests, `D` = head_dim_qk, `Dv` = head_dim_vo; pages are
 *  `NHD` = [page, page_size, num_kv_heads, head_dim] or `HND` = [page, num_kv_heads, page_size,
 *  head_dim]. Strides are 64-bit and count elements; the head_dim axis is dense.
 *
 *  For query row i of a request, at position(i) = kv_len - qo_len + i, and key position t,
 *
 *      s(i,t) = sm_scale * k_scale * q(i).k(t)            then, with logits_soft_cap = c,
 *               c * tanh(s / c)                           then, with ALiBi,
 *               s - slope * |position(i) - t|
 *      o(i)   = v_scale * sum_t exp(s(i,t) - lse(i)) * v(t)       over the visible keys t
 *      lse(i) = log( sum_t exp(s(i,t)) + exp(sink) )              natural logarithm
 *
 *  A row that sees no key has o = 0 and lse = -inf (sinks or not). */
#ifndef QUIRE_QUIRE_H_
#define QUIRE_QUIRE_H_

#include <stddef.h>
#include <stdint.h>

#include "quire/export.h"
#include "quire/version.h"

#ifdef __cplusplus
#define QUIRE_NOEXCEPT noexcept
extern "C" {
#else
/** Follows every function: `noexcept` in C++, nothing in C. */
#define QUIRE_NOEXCEPT
#endif

/* ---------------------------------------- Errors and version -------------------------------- */

/** Outcome of a call: a `quire_status_code`. */
typedef int32_t quire_status;

/** What went wrong. Equal to `quire::ErrorCode`; the values never change. */
enum quire_status_code {
  QUIRE_OK = 0,               /**< No error. */
  QUIRE_INVALID_ARGUMENT = 1, /**< A shape, dtype, stride, length, index, flag or NULL is wrong. */
  QUIRE_UNSUPPORTED = 2,      /**< No kernel serves this; the text names the nearest one. */
  QUIRE_OUT_OF_PAGES = 3,     /**< Not enough free pages: an ordinary outcome, nothing changed. */
  QUIRE_BAD_HANDLE = 4,       /**< Unknown, destroyed or of another owner or kind. */
  QUIRE_TOO_LONG = 5,         /**< A length exceeds a declared maximum. */
  QUIRE_QUEUE_FULL = 6,       /**< No room for another sequence or request. Nothing changed. */
  QUIRE_WORKSPACE_TOO_SMALL = 7, /**< A workspace is smaller than its size, or misaligned. */
  QUIRE_OUT_OF_MEMORY = 8,       /**< The host or the device could not allocate. */
  QUIRE_DEVICE_ERROR = 9,        /**< The device or its driver reported an error. */
  QUIRE_INTERNAL = 10            /**< A defect in quire; please report it with the text. */
};

/** @return The sentence of the last call that failed in this thread, "" if none has. Successful
 *  calls leave it. Valid until the next failure in this thread; longer texts are cut. */
QUIRE_API const char* quire_last_error(void) QUIRE_NOEXCEPT;

/** @return The code in words, e.g. "invalid argument"; "unknown error" for anything else. */
QUIRE_API const char* quire_status_name(quire_status status) QUIRE_NOEXCEPT;

/** @return Version of the linked library, e.g. "0.1.0"; that of the headers is
 *  `QUIRE_VERSION_STRING`. */
QUIRE_API const char* quire_version(void) QUIRE_NOEXCEPT;

/* ---------------------------------------- Tensors ------------------------------------------- */

/** Element types; a `quire_dtype` holds one. The values never change. */
enum quire_dtype_code {
  QUIRE_DTYPE_NONE = 0, /**< Marks a tensor that is not given. */
  QUIRE_FLOAT32 = 1,    /**< IEEE 754 binary32. */
  QUIRE_FLOAT16 = 2,    /**< IEEE 754 binary16. */
  QUIRE_BFLOAT16 = 3,   /**< 1-8-7: the upper half of a float32. */
  QUIRE_INT8 = 4,
  QUIRE_FLOAT8_E4M3 = 5, /**< 1-4-3 with NaN and without infinity (OCP E4M3, "fn"). */
  QUIRE_FLOAT8_E5M2 = 6, /**< 1-5-2 with NaN and infinity (OCP E5M2). */
  QUIRE_INT32 = 7,
  QUIRE_INT64 = 8,
  QUIRE_UINT8 = 9,
  QUIRE_UINT32 = 10
};
/** An element type: an enumerator of `quire_dtype_code`. */
typedef int32_t quire_dtype;

/** @return Bytes per element, 0 for `QUIRE_DTYPE_NONE` and for unknown values. */
QUIRE_API size_t quire_dtype_size(quire_dtype dtype) QUIRE_NOEXCEPT;

/** @return The name used in error texts and by the command line, e.g. "bfloat16". */
QUIRE_API const char* quire_dtype_name(quire_dtype dtype) QUIRE_NOEXCEPT;

/** Kinds of devices. The values never change. */
enum quire_device_type {
  QUIRE_DEVICE_CPU = 0, /**< The host. */
  QUIRE_DEVICE_CUDA = 1 /**< An NVIDIA GPU. */
};

/** Where memory lives and where work runs. */
typedef struct quire_device {
  int32_t type;  /**< A `quire_device_type`. */
  int32_t index; /**< CUDA ordinal; 0 for the CPU. */
} quire_device;

/** Dimensions of a `quire_tensor` at most. */
#define QUIRE_MAX_RANK 4

/** A view of the caller's memory. One that is all zero is "not given". */
typedef struct quire_tensor {
  void* data;                      /**< On `device`. quire writes only where a parameter says so. */
  quire_dtype dtype;               /**< `QUIRE_DTYPE_NONE` if not given. */
  int32_t rank;                    /**< 0 to 4. */
  quire_device device;             /**< Where `data` lies. */
  int64_t shape[QUIRE_MAX_RANK];   /**< Entries beyond `rank` are ignored. */
  int64_t strides[QUIRE_MAX_RANK]; /**< In elements; anything where the dimension is 0 or 1. */
} quire_tensor;

/** A tensor that is not given. */
#define QUIRE_TENSOR_NONE \
  {NULL, QUIRE_DTYPE_NONE, 0, {QUIRE_DEVICE_CPU, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}

/** @return A row-major tensor without gaps, on `device`.
 *  @param data   The elements. Written only if the tensor is passed where quire writes.
 *  @param rank   0 to 4; anything else, or a NULL `shape`, gives `QUIRE_TENSOR_NONE`.
 *  @param shape  `rank` sizes. In C, `QUIRE_SHAPE(a, b, c)` gives rank and shape at once. */
QUIRE_API quire_tensor quire_tensor_packed(const void* data, quire_dtype dtype, quire_device device,
                                           int32_t rank, const int64_t* shape) QUIRE_NOEXCEPT;

#ifndef __cplusplus
/** Rank and shape of a tensor: `quire_tensor_packed(data, dtype, device, QUIRE_SHAPE(8, 128))`. */
#define QUIRE_SHAPE(...)                                                                   \
  (int32_t)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]) { \
    __VA_ARGS__                                                                            \
  }

/** `quire_tensor_packed` on the CPU, followed by the shape: `QUIRE_CPU_TENSOR(q, QUIRE_FLOAT32, 8,
 *  128)`. */
#define QUIRE_CPU_TENSOR(data, dtype, ...) \
  quire_tensor_packed(data, dtype, (quire_device){QUIRE_DEVICE_CPU, 0}, QUIRE_SHAPE(__VA_ARGS__))
#endif

/* ---------------------------------------- Executors ----------------------------------------- */

/** Where the CPU backend's threads come from. Used from many threads at once. */
typedef struct quire_executor quire_executor;

/** A unit of work that quire hands to an executor. Does not throw. */
typedef void (*quire_task)(void* context, int32_t index);

/** An executor made of an engine's own threads. */
typedef struct quire_executor_callbacks {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  /** Calls `task(context, i)` exactly once for each i in [0, count), in any order and on any
   * threads (the caller's included), and returns when all have returned. Is called from several
   * threads at once, does not require that tasks run concurrently, does not throw or jump. */
  void (*parallel)(void* user, int32_t count, quire_task task, void* context);
  void* user;          /**< Given to `parallel`. Kept alive by the caller while in use. */
  int32_t concurrency; /**< How many tasks make progress at the same time, at least 1. */
  int32_t reserved;    /**< 0. */
} quire_executor_callbacks;

/** Static initialiser: all defaults. */
#define QUIRE_EXECUTOR_CALLBACKS_INIT {sizeof(quire_executor_callbacks), NULL, NULL, 1, 0}

/** Writes `QUIRE_EXECUTOR_CALLBACKS_INIT`. @param struct_size  `sizeof(*callbacks)` as the caller
 *  knows it: no byte beyond is written. The other `…_init` functions do likewise for theirs. */
QUIRE_API quire_status quire_executor_callbacks_init(quire_executor_callbacks* callbacks,
                                                     size_t struct_size) QUIRE_NOEXCEPT;

/** Makes an executor of callbacks. @return `QUIRE_INVALID_ARGUMENT` if `parallel` is NULL or
 *  `concurrency` < 1. */
QUIRE_API quire_status quire_executor_create(const quire_executor_callbacks* callbacks,
                                             quire_executor** executor) QUIRE_NOEXCEPT;

/** Makes a pool of persistent threads that sleep when there is no work.
 *  @param num_threads  The thread that calls quire included; 0 takes one per available core.
 *  @return `QUIRE_INVALID_ARGUMENT` if negative, `QUIRE_OUT_OF_MEMORY` if threads cannot start. */
QUIRE_API quire_status quire_thread_pool_create(int32_t num_threads,
                                                quire_executor** executor) QUIRE_NOEXCEPT;

/** Releases an executor. Its threads end when the last attention made with it is destroyed. Not
 *  while a call that names it runs. */
QUIRE_API void quire_executor_destroy(quire_executor* executor) QUIRE_NOEXCEPT;

/* ---------------------------------------- Attention: what is fixed -------------------------- */

/** Order of the axes of a page. The values never change. */
enum quire_kv_layout {
  QUIRE_LAYOUT_NHD =
      0, /**< [page, page_size, num_kv_heads, head_dim]; contiguous: [token, head, dim] */
  QUIRE_LAYOUT_HND =
      1 /**< [page, num_kv_heads, page_size, head_dim]; contiguous: [head, token, dim] */
};

/** Which keys a query sees, before the window. The values never change. */
enum quire_mask {
  QUIRE_MASK_NONE = 0,   /**< Every key. */
  QUIRE_MASK_CAUSAL = 1, /**< Keys at or before the query's own position (aligned to the end). */
  /** Every key before the request's new ones and, of the new ones, exactly those whose bit is set
   * in `tree_mask`: a query sees its own key only if its bit is set. */
  QUIRE_MASK_TREE = 2,
  QUIRE_MASK_FULL = 3 /**< The keys whose bit is set in `full_mask`. */
};

/** How scales of K and V are given. The values never change. */
enum quire_kv_scale {
  QUIRE_SCALE_NONE = 0,       /**< 1. */
  QUIRE_SCALE_PER_TENSOR = 1, /**< One float32 for K and one for V. */
  QUIRE_SCALE_PER_HEAD = 2,   /**< float32 [num_kv_heads] for K and for V. */
  /** float32 [num_pages, num_kv_heads, page_size] for K and for V, whatever the layout of the pages;
   * [num_kv_heads, tokens] for contiguous K/V. Strides are free. */
  QUIRE_SCALE_PER_TOKEN = 3
};

/** `quire_attention_spec::page_size` of K/V that are not paged: rows found through `kv_indptr`. */
#define QUIRE_CONTIGUOUS_KV 0

/** Levels of shared prefixes: prefixes of prefixes of prefixes. */
#define QUIRE_MAX_PREFIX_LEVELS 3

/** What a kind of layer fixes. Kernels are chosen from this, once. */
typedef struct quire_attention_spec {
  size_t struct_size;   /**< sizeof this struct as the caller knows it. */
  int32_t num_qo_heads; /**< Set it: no default. */
  int32_t num_kv_heads; /**< Set it: divides num_qo_heads; their quotient is the group size. */
  int32_t head_dim_qk;  /**< Set it: no default. */
  int32_t head_dim_vo;  /**< 0, the default, takes head_dim_qk. */
  quire_dtype q_dtype;  /**< Default bfloat16. float8_e4m3 is for kv_dtype float8_e4m3 without
                             scales of tokens; docs/kv_dtypes.md says what it costs in accuracy. */
  quire_dtype kv_dtype; /**< Default bfloat16. */
  quire_dtype o_dtype;  /**< q_dtype or float32; `QUIRE_DTYPE_NONE`, the default, takes q_dtype.
                             For queries of float8_e4m3: bfloat16, which none takes, float16 or
                             float32. */
  int32_t kv_layout;    /**< A `quire_kv_layout`; default NHD. */
  int32_t page_size;    /**< Tokens per page, at least 1, or `QUIRE_CONTIGUOUS_KV`; default 16. */
  int32_t mask;         /**< A `quire_mask`; default causal. */
  int32_t
      window_left; /**< w >= 0: keys t >= position - w (w + 1 with its own). -1, default: off. */
  float sm_scale;  /**< 0, the default, takes 1 / sqrt(head_dim_qk). */
  float logits_soft_cap; /**< 0, the default, is off. */
  int32_t sinks;    /**< 1: `quire_attention_tensors::sinks` enters the denominator. Default 0. */
  int32_t alibi;    /**< 1: `quire_attention_tensors::alibi_slopes` is applied. Default 0. */
  int32_t kv_scale; /**< A `quire_kv_scale`; default none. */
  int32_t no_shared_prefixes; /**< 1: requests whose tables begin with the same pages do not share
                                   them, and `quire_attention_schedule` does not look for them.
                                   Default 0: they may. */
  int32_t batch_invariant;    /**< 1: a request's result is bitwise the same alone and in any
                                   batch, on one kind of device (CPU: one tier); costs time, see
                                   docs/concepts/batch_invariance.md. Default 0. */
} quire_attention_spec;

/** Static initialiser: all defaults. */
#define QUIRE_ATTENTION_SPEC_INIT \
  {sizeof(quire_attention_spec),  \
   0,                             \
   0,                             \
   0,                             \
   0,                             \
   QUIRE_BFLOAT16,                \
   QUIRE_BFLOAT16,                \
   QUIRE_DTYPE_NONE,              \
   QUIRE_LAYOUT_NHD,              \
   16,                            \
   QUIRE_MASK_CAUSAL,             \
   -1,                            \
   0.0f,                          \
   0.0f,                          \
   0,                             \
   0,                             \
   QUIRE_SCALE_NONE,              \
   0,                             \
   0}

/** Writes `QUIRE_ATTENTION_SPEC_INIT`. */
QUIRE_API quire_status quire_attention_spec_init(quire_attention_spec* spec,
                                                 size_t struct_size) QUIRE_NOEXCEPT;

/** The largest batch that will be scheduled. Workspaces and, on a GPU, grids depend on these alone,
 *  so that a captured graph stays valid for every batch within them. */
typedef struct quire_batch_limits {
  size_t struct_size;   /**< sizeof this struct as the caller knows it. */
  int32_t max_num_seqs; /**< Default 256. */
  int32_t max_total_q;  /**< Rows of q, padding included; default 8192. */
  int32_t max_kv_len;   /**< Keys of one request; default 131072. */
  int32_t reserved;     /**< 0. */
} quire_batch_limits;

/** Static initialiser: all defaults. */
#define QUIRE_BATCH_LIMITS_INIT {sizeof(quire_batch_limits), 256, 8192, 131072, 0}

/** Writes `QUIRE_BATCH_LIMITS_INIT`. */
QUIRE_API quire_status quire_batch_limits_init(quire_batch_limits* limits,
                                               size_t struct_size) QUIRE_NOEXCEPT;

/** How an attention is made, or how a call that needs no attention runs. */
typedef struct quire_attention_options {
  size_t struct_size;       /**< sizeof this struct as the caller knows it. */
  quire_executor* executor; /**< CPU threads; NULL: the process's pool, started at first use. */
  /** Forces the kernel of this name. NULL: the first that serves the spec or, on the CPU, the one
   * that the environment asks for: `QUIRE_CPU_TIER=avx2` takes "cpu.avx2". */
  const char* kernel;
} quire_attention_options;

/** Static initialiser: all defaults. */
#define QUIRE_ATTENTION_OPTIONS_INIT {sizeof(quire_attention_options), NULL, NULL}

/** Writes `QUIRE_ATTENTION_OPTIONS_INIT`. */
QUIRE_API quire_status quire_attention_options_init(quire_attention_options* options,
                                                    size_t struct_size) QUIRE_NOEXCEPT;

/* ---------------------------------------- Attention: what a call takes ---------------------- */

/** The requests of one step. Every tensor lives on the attention's device and is read when the work
 *  runs. Exactly one of the three ways to find keys is given:
 *
 *  | keys are found through | tensors | length of a request |
 *  | --- | --- | --- |
 *  | a dense table | `page_table` | `kv_len` |
 *  | a CSR table | `kv_page_indptr`, `kv_page_indices` | `kv_len`, or `kv_last_page_len` |
 *  | contiguous K/V (`page_size` 0) | `kv_indptr` | difference of `kv_indptr`, or `kv_len` <= it |
 *
 *  Tables may hold more pages than the lengths need; what lies beyond, and what lies wholly before
 *  the window, is never read. A request may have no queries, no keys, fewer keys than queries.
 *
 *  Given but not needed: `kv_page_indices` and `kv_last_page_len` are ignored without
 *  `kv_page_indptr`, and `kv_last_page_len` with `kv_len`. A mask that the spec does not name, groups
 *  with a spec that shares no prefixes and a second way to find keys are refused. `quire_append`
 *  ignores masks and groups, `quire_attention_run` groups. */
typedef struct quire_batch {
  size_t struct_size;     /**< sizeof this struct as the caller knows it. */
  quire_tensor qo_indptr; /**< int32 [num_seqs + 1]: offsets of the requests' rows in q. */
  quire_tensor kv_len;    /**< int32 [num_seqs]: keys in cache, the new ones included. */
  quire_tensor
      page_table; /**< int32 [num_seqs, >= ceil(kv_len / page_size)]; rows may be strided. */
  quire_tensor kv_page_indptr;   /**< int32 [num_seqs + 1]. */
  quire_tensor kv_page_indices;  /**< int32 [>= kv_page_indptr[num_seqs]]. */
  quire_tensor kv_last_page_len; /**< int32 [num_seqs], 1 to page_size; any for no pages. */
  quire_tensor kv_indptr; /**< int32 [num_seqs + 1]: offsets of the requests' rows in K and V. */
  /** `QUIRE_MASK_TREE`: uint32 [total_q, >= ceil(max new keys / 32)]. Bit j % 32 of word j / 32 of
   * a row says whether the query sees new key j, the key of the request's j-th new token. */
  quire_tensor tree_mask;
  /** `QUIRE_MASK_FULL`: uint8 bits, little-endian in a byte, requests after one another, each from
   * a byte boundary: bit i * kv_len + t of a request says whether its query i sees key t. */
  quire_tensor full_mask;
  quire_tensor
      full_mask_indptr; /**< int64 [num_seqs + 1]: byte offsets of requests in full_mask. */
  /** Which requests share prefixes, where the caller knows: `quire_attention_schedule` compares no
   * tables then. int32 [1 to `QUIRE_MAX_PREFIX_LEVELS`, num_seqs], rows may be strided. Entry
   * [level, i] is -1, or says that request i is in a group of this level: the request that leads it,
   * the same for all of the group, the leader itself included. Groups are a tree: those of a level
   * are parts of groups of the level before, and begin with more of the same pages. Which of them pay
   * is decided as it is of those that are found, and again only whole pages count that all queries of
   * all in the group see. So groups depend on tables alone, and may name requests that cannot share;
   * levels are best spent on those that can. Not read where nothing is shared. Wrong groups give
   * wrong results, and no access out of bounds; checked mode finds them. */
  quire_tensor prefix_leaders;
  /** int32 [levels, num_seqs]: how many pages the tables of the request's group begin with that are
   * the same, counted from the first page on; the same number for all of the group, any for -1. Given
   * exactly if `prefix_leaders` is. */
  quire_tensor prefix_pages;
} quire_batch;

/** Static initialiser: all defaults. */
#define QUIRE_BATCH_INIT                                                            \
  {                                                                                 \
      sizeof(quire_batch), QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, \
      QUIRE_TENSOR_NONE,   QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, \
      QUIRE_TENSOR_NONE,   QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, \
      QUIRE_TENSOR_NONE}

/** Writes `QUIRE_BATCH_INIT`. */
QUIRE_API quire_status quire_batch_init(quire_batch* batch, size_t struct_size) QUIRE_NOEXCEPT;

/** The tensors of one layer. All live on the attention's device. Scales, sinks and slopes are given
 *  exactly if the spec uses them; others are refused. */
typedef struct quire_attention_tensors {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  quire_tensor q;   /**< q_dtype [total_q, num_qo_heads, D]; token and head axes may be strided. */
  quire_tensor k;   /**< kv_dtype, `NHD` or `HND` with D (paged), or rows (contiguous). */
  quire_tensor v;   /**< kv_dtype, the same with Dv; strides independent of K's. */
  quire_tensor o;   /**< Written: o_dtype [total_q, num_qo_heads, Dv]. No overlap with q, k, v. */
  quire_tensor lse; /**< Written: float32 [total_q, num_qo_heads]; or not given. */
  quire_tensor k_scale;      /**< float32, of the shape that `kv_scale` of the spec names. */
  quire_tensor v_scale;      /**< Likewise. */
  quire_tensor sinks;        /**< float32 [num_qo_heads]: unscaled logits. */
  quire_tensor alibi_slopes; /**< float32 [num_qo_heads]. */
  quire_tensor q_scale; /**< float32 [1] or [num_qo_heads], positive: what stored queries are to
                                  be multiplied by. For q_dtype float8_e4m3 only; not given: 1. */
} quire_attention_tensors;

/** Static initialiser: all defaults. */
#define QUIRE_ATTENTION_TENSORS_INIT \
  {sizeof(quire_attention_tensors),  \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE,                \
   QUIRE_TENSOR_NONE}

/** Writes `QUIRE_ATTENTION_TENSORS_INIT`. */
QUIRE_API quire_status quire_attention_tensors_init(quire_attention_tensors* tensors,
                                                    size_t struct_size) QUIRE_NOEXCEPT;

/** What checked mode found: the first offence, written on the device. All zero is none. The caller
 *  zeroes it before its first use and after an offence: calls write it only while `what` is 0 and
 *  never clear it, so that one record serves all layers of a step, or many steps, and is read once.
 *  Calls that overlap in time need separate ones. */
typedef struct quire_check_record {
  int32_t what;     /**< What it is in, 0 if nothing was found; `quire_check_result()` reads it. */
  int32_t seq;      /**< The request. */
  int64_t position; /**< Index within the request or tensor. */
  int64_t value;    /**< What was found there. */
  int64_t bound;    /**< What it had to stay below, or at or above. */
} quire_check_record;

/** How a call is made. */
typedef struct quire_call_options {
  size_t struct_size;        /**< sizeof this struct as the caller knows it. */
  void* stream;              /**< cudaStream_t. Ignored on the CPU, where calls are synchronous. */
  quire_check_record* check; /**< On the device, zeroed by the caller: turns checked mode on. */
} quire_call_options;

/** Static initialiser: all defaults. */
#define QUIRE_CALL_OPTIONS_INIT {sizeof(quire_call_options), NULL, NULL}

/** Writes `QUIRE_CALL_OPTIONS_INIT`. */
QUIRE_API quire_status quire_call_options_init(quire_call_options* call,
                                               size_t struct_size) QUIRE_NOEXCEPT;

/** Reads the record of checked mode, which it leaves as it is, and turns it into its status and
 *  sentence. Synchronises with `call->stream`. @param call  May be NULL. @return `QUIRE_OK` if nothing was found, else the code
 *  that the CPU gives the same offence: `QUIRE_INVALID_ARGUMENT` or `QUIRE_TOO_LONG`. */
QUIRE_API quire_status quire_check_result(quire_device device, const quire_check_record* record,
                                          const quire_call_options* call) QUIRE_NOEXCEPT;

/* ---------------------------------------- Attention ----------------------------------------- */

/** Bytes that workspaces are aligned to. */
#define QUIRE_WORKSPACE_ALIGNMENT 256

/** Attention of one spec on one device. Immutable: used from many threads and streams at once. */
typedef struct quire_attention quire_attention;

/** Looks a spec up in the kernel table, as create does with default options (`QUIRE_CPU_TIER`
 *  counts), without touching a device.
 *  @param kernel  Receives the name of the kernel that would serve it; may be NULL.
 *  @return `QUIRE_UNSUPPORTED` with the reason and the nearest supported choice. */
QUIRE_API quire_status quire_supports(quire_device device, const quire_attention_spec* spec,
                                      const char** kernel) QUIRE_NOEXCEPT;

/** Bytes that an attention made of the same arguments will need, computed without a device. Both
 *  workspaces are the caller's, on the device, aligned to `QUIRE_WORKSPACE_ALIGNMENT`, and may hold
 *  anything. Calls that overlap in time need separate ones.
 *  @param options         May be NULL.
 *  @param schedule_bytes  Per spec and step: filled by schedule, read by every run. May be NULL.
 *  @param scratch_bytes   Per stream: shared by all that runs on it one after another. May be NULL.
 *  @return As `quire_attention_create` does for spec and limits. */
QUIRE_API quire_status quire_workspace_sizes(quire_device device, const quire_attention_spec* spec,
                                             const quire_batch_limits* limits,
                                             const quire_attention_options* options,
                                             size_t* schedule_bytes,
                                             size_t* scratch_bytes) QUIRE_NOEXCEPT;

/** Chooses the kernel and makes an attention. Allocates; the calls that use it do not.
 *  @param options  May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` if spec or limits contradict themselves or `QUIRE_NUM_THREADS`,
 *    which the shared pool reads at its first use, is not a number, `QUIRE_UNSUPPORTED` if no kernel
 *    serves the spec, `QUIRE_BAD_HANDLE` (the executor), `QUIRE_DEVICE_ERROR` if there is no such
 *    device, `QUIRE_OUT_OF_MEMORY` (threads that cannot be started included). */
QUIRE_API quire_status quire_attention_create(quire_device device, const quire_attention_spec* spec,
                                              const quire_batch_limits* limits,
                                              const quire_attention_options* options,
                                              quire_attention** attention) QUIRE_NOEXCEPT;

/** Releases an attention. Not while a call that uses it runs; work that is queued on a stream does
 *  not need it any more. */
QUIRE_API void quire_attention_destroy(quire_attention* attention) QUIRE_NOEXCEPT;

/** The spec with its defaults filled in. @param spec  Written up to its `struct_size`, which the
 *  caller sets (`QUIRE_ATTENTION_SPEC_INIT`). */
QUIRE_API quire_status quire_attention_get_spec(const quire_attention* attention,
                                                quire_attention_spec* spec) QUIRE_NOEXCEPT;

/** The limits. @param limits  Written up to its `struct_size`, which the caller sets. */
QUIRE_API quire_status quire_attention_get_limits(const quire_attention* attention,
                                                  quire_batch_limits* limits) QUIRE_NOEXCEPT;

/** @return Name of the kernel that serves it, NULL (and an error) if `attention` is not one. */
QUIRE_API const char* quire_attention_kernel(const quire_attention* attention) QUIRE_NOEXCEPT;

/** Bytes of workspaces, as `quire_workspace_sizes`. Either result may be NULL. */
QUIRE_API quire_status quire_attention_workspace_sizes(const quire_attention* attention,
                                                       size_t* schedule_bytes,
                                                       size_t* scratch_bytes) QUIRE_NOEXCEPT;

/** Cuts the batch into equal work. Once per step; every layer of the spec reuses the result.
 *  O(num_seqs).
 *  @param schedule  Workspace of at least the schedule size; any content.
 *  @param call      May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` (a wrong shape, dtype, stride or device; on the CPU, and through
 *    `quire_call_options::check` elsewhere, a wrong length or offset too), `QUIRE_TOO_LONG` (more
 *    than the limits allow, seen where wrong values are), `QUIRE_WORKSPACE_TOO_SMALL` (or
 *    misaligned), `QUIRE_BAD_HANDLE`, `QUIRE_DEVICE_ERROR`, `QUIRE_OUT_OF_MEMORY` (for the sentence
 *    of one of these). */
QUIRE_API quire_status quire_attention_schedule(const quire_attention* attention,
                                                const quire_batch* batch, void* schedule,
                                                size_t schedule_bytes,
                                                const quire_call_options* call) QUIRE_NOEXCEPT;

/** Computes o (and lse). Every row of both is written: rows beyond `qo_indptr[num_seqs]` get o = 0
 *  and lse = -inf.
 *  @param batch     The batch that `schedule` was made for.
 *  @param schedule  As `quire_attention_schedule` left it; ready for the next run afterwards.
 *  @param scratch   Workspace of at least the scratch size; any content.
 *  @param call      May be NULL.
 *  @return The codes of `quire_attention_schedule`. `QUIRE_INVALID_ARGUMENT` also for a schedule that
 *    was not left for this batch (on the CPU; elsewhere it must not be given) and for page ids that
 *    the cache does not have (on the CPU, where they are checked before they are followed; elsewhere
 *    through `quire_call_options::check`). */
QUIRE_API quire_status quire_attention_run(const quire_attention* attention,
                                           const quire_batch* batch,
                                           const quire_attention_tensors* tensors, void* schedule,
                                           size_t schedule_bytes, void* scratch,
                                           size_t scratch_bytes,
                                           const quire_call_options* call) QUIRE_NOEXCEPT;

/** Makes an attention, schedules and runs one batch with workspaces of its own: for those who call
 *  once. Its limits are what the shapes of q and of the table hold. Allocates.
 *  @param call, options  May be NULL. @return What create, schedule, run do. */
QUIRE_API quire_status quire_attention_once(quire_device device, const quire_attention_spec* spec,
                                            const quire_batch* batch,
                                            const quire_attention_tensors* tensors,
                                            const quire_call_options* call,
                                            const quire_attention_options* options) QUIRE_NOEXCEPT;

/* ---------------------------------------- Append and merge ---------------------------------- */

/** New keys and values on their way into the cache. */
typedef struct quire_append_tensors {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  quire_tensor k; /**< [total_q, num_kv_heads, D]: float32, float16 or bfloat16; strided as q. */
  quire_tensor v; /**< [total_q, num_kv_heads, Dv], same dtype. */
  /** Written: `NHD` or `HND` pages; converted to this dtype, rounding to nearest even. 8-bit caches
   * saturate: what lies beyond their numbers (448, 57344, -128 to 127) becomes the last of them; NaN
   * stays NaN, and is 0 in int8. */
  quire_tensor k_cache;
  quire_tensor v_cache; /**< Written. */
  /** int64 [total_q]: page * page_size + offset; negative skips the row. Not given: slots are
   * derived from the batch: row i of a request goes to position kv_len - qo_len + i. */
  quire_tensor slot_mapping;
  quire_tensor k_scale; /**< float32 [1] or [num_kv_heads]: stored * scale = k. Not given: 1. */
  quire_tensor v_scale; /**< Likewise. */
  /** Written: float32 [num_pages, num_kv_heads, page_size], strides free. The scales of
   * `QUIRE_SCALE_PER_TOKEN` are computed, such that the largest magnitude of a row and head becomes
   * the largest number of an 8-bit cache (1 for a row of zeros). Given for both k and v or for
   * neither, with 8-bit caches only, and not together with `k_scale` or `v_scale`. */
  quire_tensor k_token_scale;
  quire_tensor v_token_scale; /**< Likewise. */
} quire_append_tensors;

/** Static initialiser: all defaults. */
#define QUIRE_APPEND_TENSORS_INIT \
  {sizeof(quire_append_tensors),  \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE,             \
   QUIRE_TENSOR_NONE}

/** Writes `QUIRE_APPEND_TENSORS_INIT`. */
QUIRE_API quire_status quire_append_tensors_init(quire_append_tensors* tensors,
                                                 size_t struct_size) QUIRE_NOEXCEPT;

/** Writes new keys and values into their pages. Rows beyond `qo_indptr[num_seqs]` and rows before
 *  position 0 are skipped. O(rows * heads * head_dim).
 *  @param kv_layout  A `quire_kv_layout`, of the caches, whose page_size is in their shape.
 *  @param batch      Read only if `slot_mapping` is not given (else may be NULL): `qo_indptr` and a
 *    page table with lengths.
 *  @param call       May be NULL.
 *  @param options    May be NULL; `executor` alone is used.
 *  @return `QUIRE_INVALID_ARGUMENT` (a wrong shape, dtype, slot or page id), `QUIRE_TOO_LONG` (a
 *    request of more keys than int32 counts), `QUIRE_BAD_HANDLE` (the executor), `QUIRE_UNSUPPORTED`,
 *    `QUIRE_DEVICE_ERROR`, `QUIRE_OUT_OF_MEMORY`; nothing is written then (on the CPU, and on CUDA
 *    for what the host can see). */
QUIRE_API quire_status quire_append(quire_device device, int32_t kv_layout,
                                    const quire_batch* batch, const quire_append_tensors* tensors,
                                    const quire_call_options* call,
                                    const quire_attention_options* options) QUIRE_NOEXCEPT;

/** Partial results of the same queries over disjoint sets of keys. */
typedef struct quire_merge_tensors {
  size_t struct_size;   /**< sizeof this struct as the caller knows it. */
  quire_tensor o_parts; /**< float32, float16 or bfloat16 [num_parts, total_q, num_heads, Dv]. */
  quire_tensor
      lse_parts;    /**< float32 [num_parts, total_q, num_heads]; -inf: a part without keys. */
  quire_tensor o;   /**< Written: [total_q, num_heads, Dv]; part 0 itself, or no overlap. */
  quire_tensor lse; /**< Written: float32 [total_q, num_heads]; or not given. */
} quire_merge_tensors;

/** Static initialiser: all defaults. */
#define QUIRE_MERGE_TENSORS_INIT                                                         \
  {sizeof(quire_merge_tensors), QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, QUIRE_TENSOR_NONE, \
   QUIRE_TENSOR_NONE}

/** Writes `QUIRE_MERGE_TENSORS_INIT`. */
QUIRE_API quire_status quire_merge_tensors_init(quire_merge_tensors* tensors,
                                                size_t struct_size) QUIRE_NOEXCEPT;

/** Joins partial results into the result over all keys: o = sum exp(lse_p - lse) * o_p with
 *  lse = log sum exp(lse_p), in the order of the parts. A sink belongs into one part only.
 *  O(size of o_parts). @param call, options  May be NULL; of options `executor` alone is used.
 *  @return `QUIRE_INVALID_ARGUMENT` (a wrong shape or dtype), `QUIRE_BAD_HANDLE` (the executor),
 *    `QUIRE_UNSUPPORTED`, `QUIRE_DEVICE_ERROR`, `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_merge_states(quire_device device, const quire_merge_tensors* tensors,
                                          const quire_call_options* call,
                                          const quire_attention_options* options) QUIRE_NOEXCEPT;

/* ---------------------------------------- Pages --------------------------------------------- */

/** A physical page is an index into the first axis of the cache; this is none, and pads dense page
 *  tables. */
#define QUIRE_NO_PAGE (-1)

/** Which pages of a KV cache are free, and how many references hold each of the others. It knows
 *  page ids only; the cache itself is the caller's tensor. */
typedef struct quire_page_pool quire_page_pool;

/** How large a pool is. */
typedef struct quire_page_pool_spec {
  size_t struct_size; /**< sizeof this struct as the caller knows it. */
  int32_t num_pages;  /**< Pages of the cache, at least 1: no default. */
  int32_t page_size;  /**< Tokens per page, at least 1; default 16. */
} quire_page_pool_spec;

/** Static initialiser: all defaults. */
#define QUIRE_PAGE_POOL_SPEC_INIT {sizeof(quire_page_pool_spec), 0, 16}

/** Writes `QUIRE_PAGE_POOL_SPEC_INIT`. */
QUIRE_API quire_status quire_page_pool_spec_init(quire_page_pool_spec* spec,
                                                 size_t struct_size) QUIRE_NOEXCEPT;

/** Makes a pool whose pages are all free. All its memory is taken here. O(num_pages).
 *  @return `QUIRE_INVALID_ARGUMENT` if the spec is out of range, `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_page_pool_create(const quire_page_pool_spec* spec,
                                              quire_page_pool** pool) QUIRE_NOEXCEPT;

/** Releases a pool. Page tables made on it keep its pages and stay usable. */
QUIRE_API void quire_page_pool_destroy(quire_page_pool* pool) QUIRE_NOEXCEPT;

/** @return Pages that nothing refers to, -1 (and an error) if `pool` is not a pool. O(1). */
QUIRE_API int32_t quire_page_pool_num_free(const quire_page_pool* pool) QUIRE_NOEXCEPT;

/** @return Pages that something refers to, -1 (and an error) if `pool` is not a pool. O(1). */
QUIRE_API int32_t quire_page_pool_num_used(const quire_page_pool* pool) QUIRE_NOEXCEPT;

/** @return References to a page, the page tables' included; 0 for a free page and for an id that
 *  the pool does not have; -1 (and an error) if `pool` is not a pool. O(1). */
QUIRE_API int32_t quire_page_pool_ref_count(const quire_page_pool* pool,
                                            int32_t page) QUIRE_NOEXCEPT;

/** Fills `pages` [count] with free pages, each with one reference, held by the caller. O(count).
 *  @return `QUIRE_OUT_OF_PAGES` if there are fewer; `pages` is untouched then. */
QUIRE_API quire_status quire_page_pool_allocate(quire_page_pool* pool, int32_t* pages,
                                                size_t count) QUIRE_NOEXCEPT;

/** Adds a reference of the caller to each of `pages` [count], once per occurrence. O(count).
 *  @return `QUIRE_BAD_HANDLE` if a page is free or unknown; nothing was changed then. */
QUIRE_API quire_status quire_page_pool_retain(quire_page_pool* pool, const int32_t* pages,
                                              size_t count) QUIRE_NOEXCEPT;

/** Takes back a reference of the caller from each of `pages` [count], once per occurrence; a page
 *  without references is free. References of page tables cannot be released here. O(count).
 *  @return `QUIRE_BAD_HANDLE` if the caller does not hold that many references to a page or the id
 *    is unknown; nothing was changed then. */
QUIRE_API quire_status quire_page_pool_release(quire_page_pool* pool, const int32_t* pages,
                                               size_t count) QUIRE_NOEXCEPT;

/** Recomputes what must always hold. O(num_pages). @return `QUIRE_INTERNAL` and the violation. */
QUIRE_API quire_status quire_page_pool_check(const quire_page_pool* pool) QUIRE_NOEXCEPT;

/** "Copy `tokens` tokens of page `src` to page `dst`", in K and in V of every layer: those from
 *  `src_begin` on to `dst_begin` and the places behind it. */
typedef struct quire_copy_op {
  int32_t src;       /**< Page to read. */
  int32_t dst;       /**< Page to write. */
  int32_t tokens;    /**< At most page_size less the greater of the two places below. */
  int32_t src_begin; /**< Place of the first token that is read, 0 to page_size. */
  int32_t dst_begin; /**< Place that it is written to, likewise. */
} quire_copy_op;

/** A growing list of copies, in the order in which they are executed. Plans are executed after the
 *  writes of earlier steps and before those of the step that they were made for. */
typedef struct quire_copy_plan quire_copy_plan;

/** Makes an empty plan. */
QUIRE_API quire_status quire_copy_plan_create(quire_copy_plan** plan) QUIRE_NOEXCEPT;

/** Releases a plan. */
QUIRE_API void quire_copy_plan_destroy(quire_copy_plan* plan) QUIRE_NOEXCEPT;

/** Empties a plan; its memory is kept for the next step. */
QUIRE_API quire_status quire_copy_plan_clear(quire_copy_plan* plan) QUIRE_NOEXCEPT;

/** @return How many copies there are, 0 (and an error) if `plan` is not a plan. */
QUIRE_API size_t quire_copy_plan_size(const quire_copy_plan* plan) QUIRE_NOEXCEPT;

/** @return The copies, `quire_copy_plan_size()` of them, valid until the plan changes; NULL (and an
 *  error) if `plan` is not a plan. */
QUIRE_API const quire_copy_op* quire_copy_plan_ops(const quire_copy_plan* plan) QUIRE_NOEXCEPT;

/** The K or the V of one layer, in which copies are executed: one cache, or the two that pages move
 *  between. On CUDA each lies on the device or in pinned memory of the host (`cudaHostAlloc`,
 *  `cudaHostRegister`), as a tensor on the CPU. */
typedef struct quire_copy_tensors {
  quire_tensor dst; /**< Written: `NHD` or `HND` pages of any dtype. */
  /** Read: page_size, heads, head_dim and dtype of dst, any number of pages, strides of its own.
   *  Must not overlap dst. Not given: dst. */
  quire_tensor src;
} quire_copy_tensors;

/** Executes copies in the caches of one layer or of many. The result is that of the ops one after
 *  another: an op that reads a page that an earlier one wrote copies what that one wrote. Does not
 *  allocate. On CUDA does not synchronise and may be captured (a graph replays the ops that it was
 *  captured with); `ops` and `caches` are read before the call returns, the pages when the copies
 *  run: see `quire_fence`. O(tokens * heads * head_dim) for each op and cache.
 *  @param kv_layout  A `quire_kv_layout`, that of all caches.
 *  @param ops        [count], checked as a whole before the first copy.
 *  @param caches     [num_caches], which do not overlap. Equal numbers of pages and equal page_size;
 *                    heads, head_dim, dtype and strides may differ.
 *  @param call       May be NULL.
 *  @return `QUIRE_INVALID_ARGUMENT` (a wrong shape, stride or device, a page that a cache does not
 *    have, tokens of a page onto themselves, more tokens than a page has, memory of the host that is not
 *    pinned), `QUIRE_UNSUPPORTED` (on CUDA, pages of more than 8 GiB, or 512 MiB where rows are
 *    not aligned to 16 bytes), `QUIRE_DEVICE_ERROR`; nothing was copied then, unless a kernel could
 *    not be launched. */
QUIRE_API quire_status quire_execute_copies(quire_device device, int32_t kv_layout,
                                            const quire_copy_op* ops, size_t count,
                                            const quire_copy_tensors* caches, size_t num_caches,
                                            const quire_call_options* call) QUIRE_NOEXCEPT;

/** A point in the work of a stream (on CUDA, an event), to be waited for by the host or by other
 *  streams. What is copied on a stream of its own needs one: until the copies have run, the pages
 *  that they read must not be written and those that they write must not be read. Keep a reference
 *  to them (`quire_page_pool_retain`), record a fence after the copies and release them once it is
 *  reached. On the CPU calls are synchronous, so that a fence is reached at once. One that was never
 *  recorded is reached. Calls must not overlap in time with `quire_fence_record`. */
typedef struct quire_fence quire_fence;

/** Makes a fence. Allocates; the calls that use it do not. @return `QUIRE_DEVICE_ERROR`. */
QUIRE_API quire_status quire_fence_create(quire_device device, quire_fence** fence) QUIRE_NOEXCEPT;

/** Releases a fence. Does not wait. */
QUIRE_API void quire_fence_destroy(quire_fence* fence) QUIRE_NOEXCEPT;

/** Moves the fence behind all work that is on the stream by now. Does not synchronise. While the
 *  stream is captured the fence is part of the capture and only `quire_fence_wait` may follow.
 *  @param stream  A cudaStream_t of the fence's device, NULL for the default one. */
QUIRE_API quire_status quire_fence_record(quire_fence* fence, void* stream) QUIRE_NOEXCEPT;

/** Tells whether that work is done, without waiting for it. Then what it wrote is there to be read,
 *  by the host too.
 *  @param reached  1 or 0.
 *  @return `QUIRE_DEVICE_ERROR`, also for an error that the work met. */
QUIRE_API quire_status quire_fence_query(const quire_fence* fence, int32_t* reached) QUIRE_NOEXCEPT;

/** Makes what is put on a stream from now on wait for the fence as it was recorded last. Does not
 *  synchronise and may be captured. @param stream  A cudaStream_t of any device. */
QUIRE_API quire_status quire_fence_wait(const quire_fence* fence, void* stream) QUIRE_NOEXCEPT;

/** Blocks the calling thread until the fence is reached. @return As `quire_fence_query`. */
QUIRE_API quire_status quire_fence_synchronize(const quire_fence* fence) QUIRE_NOEXCEPT;

/** Sequences over the pages of a pool, with sharing and copy-on-write. A sequence of `length`
 *  tokens has exactly ceil(length / page_size) pages; token t is in slot pages[t / page_size] *
 *  page_size + t % page_size. Forks share pages, the partial one included; whoever first writes
 *  to a shared page gets a copy. Every call that changes a table is all-or-nothing. */
typedef struct quire_page_table quire_page_table;

/** A sequence of a page table. Once it is destroyed it is never valid again, though its slot is
 *  reused. All zero is never valid. */
typedef struct quire_seq_id {
  uint32_t slot;       /**< 0 to max_seqs - 1, unique among the live sequences. */
  uint32_t generation; /**< Tells the successive users of a slot apart. */
} quire_seq_id;

/** How many sequences a table holds, and how long they may be. */
typedef struct quire_page_table_spec {
  size_t struct_size;         /**< sizeof this struct as the caller knows it. */
  int32_t max_seqs;           /**< At least 1; default 256. */
  int32_t max_tokens_per_seq; /**< At least 1; default 131072. */
  /** Of the layers whose pages these are: a query sees so many keys before its own; -1, the default: all.
   *  With a window `quire_page_table_slide` gives pages back. */
  int32_t window_left;
  int32_t reserved; /**< 0. */
} quire_page_table_spec;

/** Static initialiser: all defaults. */
#define QUIRE_PAGE_TABLE_SPEC_INIT {sizeof(quire_page_table_spec), 256, 131072, -1, 0}

/** Writes `QUIRE_PAGE_TABLE_SPEC_INIT`. */
QUIRE_API quire_status quire_page_table_spec_init(quire_page_table_spec* spec,
                                                  size_t struct_size) QUIRE_NOEXCEPT;

/** Makes a table without sequences on a pool, which several tables may share. All its memory is
 *  taken here.
 *  @return `QUIRE_INVALID_ARGUMENT` if the spec is out of range, `QUIRE_OUT_OF_MEMORY`. */
QUIRE_API quire_status quire_page_table_create(quire_page_pool* pool,
                                               const quire_page_table_spec* spec,
                                               quire_page_table** table) QUIRE_NOEXCEPT;

/** Releases a table and gives the pages of all its sequences back. */
QUIRE_API void quire_page_table_destroy(quire_page_table* table) QUIRE_NOEXCEPT;

/** Makes an empty sequence. O(1). @return `QUIRE_QUEUE_FULL` if there are `max_seqs` already. */
QUIRE_API quire_status quire_page_table_create_seq(quire_page_table* table,
                                                   quire_seq_id* seq) QUIRE_NOEXCEPT;

/** Makes a sequence of the first `length` tokens of `seq`, sharing all their pages. Nothing is
 *  copied until one of the two writes to the page that they share in part. O(pages).
 *  @param length  0 to the length of `seq`; these tokens have been written, or will be before any
 *    copy of a later append is executed.
 *  @return `QUIRE_BAD_HANDLE`, `QUIRE_INVALID_ARGUMENT` (length), `QUIRE_QUEUE_FULL`. */
QUIRE_API quire_status quire_page_table_fork_seq(quire_page_table* table, quire_seq_id seq,
                                                 int32_t length,
                                                 quire_seq_id* forked) QUIRE_NOEXCEPT;

/** Makes room for `n` more tokens at the end. If the last page is partial and shared, the sequence
 *  gets a page of its own in its place and one copy is added to `copies`. O(new pages).
 *  @return `QUIRE_BAD_HANDLE`, `QUIRE_INVALID_ARGUMENT` (n < 0), `QUIRE_TOO_LONG`,
 *    `QUIRE_OUT_OF_PAGES`, `QUIRE_OUT_OF_MEMORY` (`copies` could not grow). */
QUIRE_API quire_status quire_page_table_append(quire_page_table* table, quire_seq_id seq, int32_t n,
                                               quire_copy_plan* copies) QUIRE_NOEXCEPT;

/** Forgets the tokens from `length` on and gives back the pages that held nothing else. O(pages
 *  given back). Costs no page and no copy, even inside a shared page.
 *  @param length  0 to the length of `seq`; with a window, one whose window `quire_page_table_slide` has
 *    left (so it is of a fork and of an accepted tree).
 *  @return `QUIRE_BAD_HANDLE`, `QUIRE_INVALID_ARGUMENT` (length). */
QUIRE_API quire_status quire_page_table_truncate(quire_page_table* table, quire_seq_id seq,
                                                 int32_t length) QUIRE_NOEXCEPT;

/** Says that no query before `position` will come any more, and gives back the pages whose tokens none
 *  behind it sees: those before position - window_left. Their entries become `QUIRE_NO_PAGE`, which
 *  attention with that window does not read. Does nothing without a window. O(pages given back).
 *  @param position  0 to the length of `seq`.
 *  @return `QUIRE_BAD_HANDLE`, `QUIRE_INVALID_ARGUMENT` (position). */
QUIRE_API quire_status quire_page_table_slide(quire_page_table* table, quire_seq_id seq,
                                              int32_t position) QUIRE_NOEXCEPT;

/** @return Pages at the beginning that a sequence has given back, -1 if it is not live, and (with an
 *  error) if `table` is not a table. O(1). */
QUIRE_API int32_t quire_page_table_num_holes(const quire_page_table* table,
                                             quire_seq_id seq) QUIRE_NOEXCEPT;

/** Keeps, of the tokens from `length` on, those on an accepted path of a token tree; they move up in
 *  order, and the rest is forgotten as by truncate. The last step of tree speculation: the drafts were
 *  appended in any order in which parents come before children, and computed with
 *  `QUIRE_MASK_TREE`. O(path + pages given back).
 *  @param length  0 to the length of `seq`: the tokens before the tree.
 *  @param path    [count], which tokens to keep: 0 is the one at `length`, each greater than the one
 *                 before.
 *  @param copies  Receives what moves, to be executed before anything is written behind the path.
 *  @return `QUIRE_BAD_HANDLE`, `QUIRE_INVALID_ARGUMENT` (length, path, or a token would move onto a
 *    page that is shared), `QUIRE_OUT_OF_MEMORY` (`copies` could not grow). */
QUIRE_API quire_status quire_page_table_accept_tree(quire_page_table* table, quire_seq_id seq,
                                                    int32_t length, const int32_t* path,
                                                    size_t count,
                                                    quire_copy_plan* copies) QUIRE_NOEXCEPT;

/** Ends a sequence: its pages lose a reference, its id is never valid again. O(pages).
 *  @return `QUIRE_BAD_HANDLE`, also on the second call. */
QUIRE_API quire_status quire_page_table_destroy_seq(quire_page_table* table,
                                                    quire_seq_id seq) QUIRE_NOEXCEPT;

/** @return Live sequences, -1 (and an error) if `table` is not a table. O(1). */
QUIRE_API int32_t quire_page_table_num_seqs(const quire_page_table* table) QUIRE_NOEXCEPT;

/** @return Tokens of a live sequence; -1 if there is no such sequence or table. O(1). */
QUIRE_API int32_t quire_page_table_length(const quire_page_table* table,
                                          quire_seq_id seq) QUIRE_NOEXCEPT;

/** The pages of a sequence in the order of its tokens. O(1).
 *  @param pages  Receives [count] page ids, valid until the sequence is destroyed; their contents
 *    until it next changes.
 *  @return `QUIRE_BAD_HANDLE` if the sequence is not live. */
QUIRE_API quire_status quire_page_table_pages(const quire_page_table* table, quire_seq_id seq,
                                              const int32_t** pages, size_t* count) QUIRE_NOEXCEPT;

/** @return page * page_size + offset of the token at `position`; -1 if there is no such token,
 *  sequence or table. O(1). */
QUIRE_API int64_t quire_page_table_slot(const quire_page_table* table, quire_seq_id seq,
                                        int32_t position) QUIRE_NOEXCEPT;

/** @return Free pages that appending `n` tokens would take, its copy-on-write included; -1 if there
 *  is no such sequence or table, n < 0, or the sequence would become too long. O(1). */
QUIRE_API int32_t quire_page_table_pages_needed(const quire_page_table* table, quire_seq_id seq,
                                                int32_t n) QUIRE_NOEXCEPT;

/** @return Pages that destroying the sequence would give back; -1 if there is no such table, 0 if
 *  no such sequence. O(pages). */
QUIRE_API int32_t quire_page_table_reclaimable_pages(const quire_page_table* table,
                                                     quire_seq_id seq) QUIRE_NOEXCEPT;

/** Recomputes what must always hold, the pool's invariants included. O(num_pages + entries).
 *  Allocates. @return `QUIRE_INTERNAL` with the first violation. */
QUIRE_API quire_status quire_page_table_check(const quire_page_table* table) QUIRE_NOEXCEPT;

/* ---------------------------------------- What there is ------------------------------------- */

/** A kernel and all that it serves, in words, from the table that dispatches. */
typedef struct quire_kernel_info {
  size_t struct_size;    /**< sizeof this struct as the caller knows it. */
  const char* name;      /**< e.g. "cpu.portable" */
  const char* summary;   /**< One line. */
  const char* q_dtypes;  /**< e.g. "float32, float16, bfloat16" */
  const char* kv_dtypes; /**< Likewise. */
  const char* head_dims; /**< e.g. "multiples of 8 up to 512, qk and vo independent" */
  const char* masks;     /**< e.g. "none, causal, tree, full" */
  const char* options;   /**< e.g. "window, soft cap, sinks, ALiBi, contiguous K/V" */
  const char* kv_scales; /**< e.g. "none, per tensor, per head" */
  int32_t device_type;   /**< A `quire_device_type`. */
  int32_t reserved;      /**< 0. */
} quire_kernel_info;

/** Static initialiser: all defaults. */
#define QUIRE_KERNEL_INFO_INIT \
  {sizeof(quire_kernel_info), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, QUIRE_DEVICE_CPU, 0}

/** Writes `QUIRE_KERNEL_INFO_INIT`. */
QUIRE_API quire_status quire_kernel_info_init(quire_kernel_info* info,
                                              size_t struct_size) QUIRE_NOEXCEPT;

/** @return How many kernels this build has. Allocates at the first call. */
QUIRE_API size_t quire_kernel_count(void) QUIRE_NOEXCEPT;

/** Describes kernel `index`, in the order in which they are considered.
 *  @param info  Written up to its `struct_size`, which the caller sets.
 *  @return `QUIRE_INVALID_ARGUMENT` for an index that is not below `quire_kernel_count()`. */
QUIRE_API quire_status quire_kernel_get(size_t index, quire_kernel_info* info) QUIRE_NOEXCEPT;

/** A device that this process can use. */
typedef struct quire_device_info {
  size_t struct_size;  /**< sizeof this struct as the caller knows it. */
  quire_device device; /**< As the other calls take it. */
  const char* name;    /**< As its maker calls it. */
  const char* facts;   /**< Lines `key: value`, e.g. "memory: 139 GiB\n". */
} quire_device_info;

/** Static initialiser: all defaults. */
#define QUIRE_DEVICE_INFO_INIT {sizeof(quire_device_info), {QUIRE_DEVICE_CPU, 0}, NULL, NULL}

/** Writes `QUIRE_DEVICE_INFO_INIT`. */
QUIRE_API quire_status quire_device_info_init(quire_device_info* info,
                                              size_t struct_size) QUIRE_NOEXCEPT;

/** @return How many devices there are: the CPU, then the CUDA devices that are present. Counted at
 *  the first call, which allocates and may initialise the driver. */
QUIRE_API size_t quire_device_count(void) QUIRE_NOEXCEPT;

/** Describes device `index`.
 *  @param info  Written up to its `struct_size`, which the caller sets.
 *  @return `QUIRE_INVALID_ARGUMENT` for an index that is not below `quire_device_count()`. */
QUIRE_API quire_status quire_device_get(size_t index, quire_device_info* info) QUIRE_NOEXCEPT;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* QUIRE_QUIRE_H_ */
