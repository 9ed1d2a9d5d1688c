// SPDX-License-Identifier: Apache-2.0
/// @file
/// The operation: attention of a ragged batch of queries over paged or contiguous keys and values.
///
/// Notation of shapes: `total_q` rows of q (all requests' new tokens after one another, then
/// padding), `num_seqs` requests, `D` = head_dim_qk, `Dv` = head_dim_vo, page layouts
/// `NHD` = [page, page_size, num_kv_heads, head_dim], `HND` = [page, num_kv_heads, page_size,
/// head_dim]. All strides are 64-bit and counted in elements; the head_dim axis is dense.
///
/// For query row i of a request and key position t,
///
///     s(i,t) = sm_scale · q_scale · k_scale · q(i)·k(t)    (scales of t, if they are per token)
///              with logits_soft_cap c:  s ← c · tanh(s / c)
///              then, with ALiBi:        s ← s − slope · |position(i) − t|
///     where    position(i) = kv_len − qo_len + i
///     o(i)   = v_scale · Σ_t exp(s(i,t) − lse(i)) · v(t)            over the visible keys t
///     lse(i) = log( Σ_t exp(s(i,t)) + exp(sink) )                   natural logarithm
///
/// A row that sees no key has o = 0 and lse = −inf (sinks or not). Memory that no query of the
/// batch may see is not read; keys that only bits of a tree or full mask hide count as seen. Values
/// that not all queries of a request see must be finite: kernels may multiply them by 0 for the
/// others (those of the CPU and `cuda.simt` do not).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "quire/error.hpp"
#include "quire/executor.hpp"
#include "quire/export.h"
#include "quire/tensor.hpp"

namespace quire {
inline namespace v0 {

/// Order of the axes of a page. The values are part of the C ABI and never change.
enum class KvLayout : std::int32_t {
  kNHD = 0,  ///< [page, page_size, num_kv_heads, head_dim]; contiguous K/V: [token, head, dim].
  kHND = 1,  ///< [page, num_kv_heads, page_size, head_dim]; contiguous K/V: [head, token, dim].
};

/// Which keys a query sees, before the window. The values are part of the C ABI.
enum class Mask : std::int32_t {
  kNone = 0,    ///< Every key.
  kCausal = 1,  ///< Keys at or before the query's own position (aligned to the end).
  /// Every key before the request's new ones and, of the new ones, exactly those whose bit is set
  /// in `Batch::tree_mask`: a query sees its own key only if its bit is set.
  kTree = 2,
  kFull = 3,  ///< The keys whose bit is set (`Batch::full_mask`).
};

/// How 8-bit and scaled caches store their scale. The values are part of the C ABI.
enum class KvScale : std::int32_t {
  kNone = 0,       ///< 1.
  kPerTensor = 1,  ///< One float32 for K and one for V.
  kPerHead = 2,    ///< float32 [num_kv_heads] for K and for V.
  /// float32 [num_pages, num_kv_heads, page_size] for K and for V, whatever the layout of the pages;
  /// [num_kv_heads, tokens] for contiguous K/V. Strides are free. Of tokens that no query of the
  /// batch may see, scales are not read, as K and V are not.
  kPerToken = 3,
};

/// `AttentionSpec::page_size` of K/V that are not paged: one row of keys per token, requests after
/// one another, found through `Batch::kv_indptr`.
inline constexpr std::int32_t kContiguousKv = 0;

/// Levels of shared prefixes: prefixes of prefixes of prefixes.
inline constexpr std::int32_t kMaxPrefixLevels = 3;

/// What a kind of layer fixes. Kernels are chosen from this, once.
struct AttentionSpec {
  std::int32_t num_qo_heads = 0;  ///< Heads of q and o, ≥ 1.
  std::int32_t num_kv_heads = 0;  ///< Divides num_qo_heads; their quotient is the group size.
  std::int32_t head_dim_qk = 0;   ///< Components of a query and of a key.
  std::int32_t head_dim_vo = 0;   ///< 0 takes head_dim_qk.
  /// Of q. float8_e4m3 is for K and V of float8_e4m3 without scales of tokens: codes of q and K are
  /// multiplied as they are where that is faster; docs/kv_dtypes.md says what q of 8 bits costs in
  /// accuracy.
  DType q_dtype = DType::kBFloat16;
  DType kv_dtype = DType::kBFloat16;  ///< Of K and V.
  /// q_dtype or float32; kNone takes q_dtype. For queries of float8_e4m3: bfloat16, which kNone takes,
  /// float16 or float32.
  DType o_dtype = DType::kNone;
  KvLayout kv_layout = KvLayout::kNHD;  ///< Of K and V.
  std::int32_t page_size = 16;          ///< Tokens per page, ≥ 1, or `kContiguousKv`.
  Mask mask = Mask::kCausal;            ///< Before the window.
  std::int32_t window_left = -1;  ///< w ≥ 0: keys t ≥ position − w (w + 1 with its own). −1 is off.
  float sm_scale = 0.0F;          ///< 0 takes 1/√head_dim_qk.
  float logits_soft_cap = 0.0F;   ///< 0 is off.
  bool sinks = false;             ///< `AttentionTensors::sinks` enters the denominator.
  bool alibi = false;             ///< `AttentionTensors::alibi_slopes` is applied.
  KvScale kv_scale = KvScale::kNone;  ///< Shape of `AttentionTensors::k_scale` and `v_scale`.
  /// Whether requests whose tables begin with the same pages read them once for all of them, if that is
  /// faster. `schedule()` looks for them, and tables must be in place when it runs, unless
  /// `Batch::prefix_leaders` names them. Shared among up to 2,048 requests, those of at most 64 rows
  /// (queries × group size; 32 on the CPU), if keys are paged, all queries see all earlier keys
  /// (`kCausal`, `kNone` or `kTree` without a window) and there is no ALiBi.
  bool share_prefixes = true;
  /// Whether the result of a request is bitwise the same alone and in any batch, in any order, with
  /// its prefix shared or not (none is looked for then, and none that is named is taken). The same for attentions of any limits on one
  /// kind of device (on the CPU, on one tier). Costs time where one or few requests decode, where
  /// lengths differ much, and most where prefixes are shared (docs/concepts/batch_invariance.md, which
  /// also says for which chunks of a prompt the result is the same as for the whole of it).
  bool batch_invariant = false;

  /// Equal in every field.
  friend bool operator==(const AttentionSpec&, const AttentionSpec&) = default;
};

/// The largest batch that will be scheduled. Workspaces and, on a GPU, grids depend on spec, limits
/// and device (the executor's concurrency on the CPU), never on the batch, so that a captured graph
/// stays valid for every batch within them.
struct BatchLimits {
  std::int32_t max_num_seqs = 256;   ///< Requests of one step.
  std::int32_t max_total_q = 8192;   ///< Rows of q, padding included.
  std::int32_t max_kv_len = 131072;  ///< Keys of one request.

  /// Equal in every field.
  friend bool operator==(const BatchLimits&, const BatchLimits&) = default;
};

/// The requests of one step. Every tensor lives on the attention's device; they are read when the
/// work runs, so keep them until then. Exactly one of the three ways to find keys is given:
///
/// | keys are found through | tensors | length of a request |
/// | --- | --- | --- |
/// | a dense table | `page_table` | `kv_len` |
/// | a CSR table | `kv_page_indptr`, `kv_page_indices` | `kv_len`, or `kv_last_page_len` |
/// | contiguous K/V | `kv_indptr` | difference of `kv_indptr`, or `kv_len` ≤ it |
///
/// Tables may hold more pages than the lengths need; what lies beyond, and what lies wholly before
/// the window, is never read. A request may have no queries, no keys, or fewer keys than queries.
///
/// Given but not needed: `kv_page_indices` and `kv_last_page_len` are ignored without
/// `kv_page_indptr`, and `kv_last_page_len` with `kv_len`. A mask that the spec does not name, groups
/// with a spec that shares no prefixes or has contiguous K/V, and a second way to find keys are refused. `append()` ignores
/// masks and groups, `Attention::run()` groups.
struct Batch {
  /// int32 [num_seqs + 1]: offsets of the requests' rows in q, from 0 on, not decreasing.
  TensorView qo_indptr{};
  TensorView kv_len{};           ///< int32 [num_seqs]: keys in cache, the new ones included.
  TensorView page_table{};       ///< int32 [num_seqs, ≥ ⌈kv_len / page_size⌉], rows may be strided.
  TensorView kv_page_indptr{};   ///< int32 [num_seqs + 1].
  TensorView kv_page_indices{};  ///< int32 [≥ kv_page_indptr[num_seqs]].
  TensorView
      kv_last_page_len{};  ///< int32 [num_seqs], 1…page_size; any value for a request without pages.
  TensorView kv_indptr{};  ///< int32 [num_seqs + 1]: offsets of the requests' rows in K and V.

  /// `Mask::kTree`: uint32 [total_q, ≥ ⌈max new keys / 32⌉]. Bit j % 32 of word j / 32 of a row
  /// says whether the query sees new key j, the key of the request's j-th new token.
  TensorView tree_mask{};
  /// `Mask::kFull`: uint8 bits, little-endian in a byte, requests after one another, each from a
  /// byte boundary: bit i · kv_len + t of a request says whether its query i sees key t.
  TensorView full_mask{};
  TensorView
      full_mask_indptr{};  ///< int64 [num_seqs + 1]: byte offsets of the requests in full_mask.

  /// Which requests share prefixes, where the caller knows: `schedule()` compares no tables then.
  /// int32 [1…kMaxPrefixLevels, num_seqs], rows may be strided. Entry [level, i] is −1, or says that
  /// request i is in a group of this level: the request that leads it, the same for all of the group,
  /// the leader itself included. Groups are a tree: those of a level are parts of groups of the level
  /// before, and begin with more of the same pages. Which of them pay is decided as it is of those that are found, and
  /// again only whole pages count that all queries of all in the group see. So groups depend on tables alone,
  /// and may name requests that cannot share; levels are best spent on those that can.
  /// Refused with `AttentionSpec::share_prefixes` off and with contiguous K/V; not read where nothing is
  /// shared for another reason (a window, ALiBi, a full mask, `batch_invariant`). Wrong groups give wrong
  /// results, and no access out of bounds; checked mode finds them.
  TensorView prefix_leaders{};
  /// int32 [levels, num_seqs]: how many pages the tables of the request's group begin with that are the
  /// same, counted from the first page on; the same number for all of the group, any for −1. At most
  /// ⌈kv_len / page_size⌉ of each member. Given exactly if `prefix_leaders` is.
  TensorView prefix_pages{};
};

/// The tensors of one layer. All live on the attention's device. Scales, sinks and slopes are given
/// exactly if the spec uses them; others are refused. On CUDA every row of q, k and v begins at a
/// multiple of 16 bytes, every row of o at one of two elements.
struct AttentionTensors {
  TensorView q{};  ///< q_dtype [total_q, num_qo_heads, D]; token and head axes may be strided.
  TensorView k{};  ///< kv_dtype, `NHD` or `HND` with D (paged), or rows (contiguous).
  TensorView v{};  ///< kv_dtype, the same with Dv; strides independent of K's.
  MutableTensorView o{};      ///< o_dtype [total_q, num_qo_heads, Dv]. Must not overlap q, k or v.
  MutableTensorView lse{};    ///< float32 [total_q, num_qo_heads], or not given.
  TensorView k_scale{};       ///< float32, of the shape that `AttentionSpec::kv_scale` names.
  TensorView v_scale{};       ///< Likewise.
  TensorView sinks{};         ///< float32 [num_qo_heads]: unscaled logits.
  TensorView alibi_slopes{};  ///< float32 [num_qo_heads].
  /// float32 [1] or [num_qo_heads], positive: what stored queries are to be multiplied by. For
  /// q_dtype float8_e4m3 only. Not given: 1.
  TensorView q_scale{};
};

/// Caller-owned bytes on the attention's device, aligned to `kWorkspaceAlignment`. They may hold
/// anything. Calls that overlap in time need separate ones.
using Workspace = std::span<std::byte>;
inline constexpr std::size_t kWorkspaceAlignment = 256;  ///< Bytes.

/// Bytes that an `Attention` needs.
struct WorkspaceSizes {
  std::size_t schedule = 0;  ///< Per spec and step: filled by `schedule()`, used by every `run()`.
  std::size_t scratch = 0;  ///< Per stream: shared by everything that runs on it one after another.
};

/// What checked mode found: the first offence, written on the device. All zero is none. The caller
/// zeroes it before its first use and after an offence: calls write it only while `what` is 0 and
/// never clear it, so that one record serves all layers of a step, or many steps, and is read once.
/// Calls that overlap in time need separate ones.
struct CheckRecord {
  std::int32_t what = 0;      ///< A `CheckedItem`, 0 if nothing was found.
  std::int32_t seq = 0;       ///< The request.
  std::int64_t position = 0;  ///< Index within the request or tensor.
  std::int64_t value = 0;     ///< What was found there.
  std::int64_t bound = 0;     ///< What it had to be at least or at most; page ids and slots: below.
};

/// How a call is made on a device.
struct CallOptions {
  void* stream = nullptr;        ///< cudaStream_t. Ignored on the CPU, where calls are synchronous.
  CheckRecord* check = nullptr;  ///< On the device, zeroed: checked mode. See `check_result()`.
};

/// How an `Attention` is made.
struct AttentionOptions {
  Executor* executor = nullptr;  ///< CPU threads; null takes `default_executor()`. Must outlive it.
  /// Forces the kernel of this name (`quire info` lists them). Empty: the first that serves the
  /// spec or, on the CPU, the one that the environment asks for: `QUIRE_CPU_TIER=avx2` takes
  /// `cpu.avx2`, or fails where that cannot run or does not serve the spec.
  std::string kernel{};
};

/// Whether a device serves a spec, and by which kernel; if not, why not and what comes nearest.
struct Support {
  bool supported = false;  ///< Whether a kernel serves the spec.
  std::string kernel;      ///< Name of the kernel that would serve it.
  std::string reason;      ///< A sentence, empty if supported.
};

/// Looks the spec up in the kernel table, as the constructor does with default options
/// (`QUIRE_CPU_TIER` counts). Does not touch a device and does not throw for anything a
/// spec may hold; a device that is not built or not present is the constructor's business.
[[nodiscard]] QUIRE_API Support supports(Device device, const AttentionSpec& spec);

/// @return Bytes that an `Attention` made of the same arguments will need. Computed without a
/// device.
/// @throws Error as the constructor does for spec and limits.
[[nodiscard]] QUIRE_API WorkspaceSizes workspace_sizes(Device device, const AttentionSpec& spec,
                                                       const BatchLimits& limits,
                                                       const AttentionOptions& options = {});

/// Keys that a step reads in each kv head, those of all requests together.
struct KeyReads {
  std::int64_t apart = 0;    ///< If every request reads what its queries see.
  std::int64_t grouped = 0;  ///< As scheduled: a shared prefix once for all who share it.
};

namespace internal {
class AttentionBackend;
}

/// Attention of one spec on one device. Immutable: used from many threads and streams at once.
/// Movable, not copyable.
class QUIRE_API Attention {
 public:
  /// Chooses the kernel. Allocates; the other calls do not.
  /// @throws Error `kInvalidArgument` (limits or spec contradict themselves), `kUnsupported` (no
  ///   kernel; the text names the nearest supported choice), `kDeviceError` (no such device), and
  ///   what `default_executor()` throws if it is taken.
  Attention(Device device, const AttentionSpec& spec, const BatchLimits& limits,
            const AttentionOptions& options = {});
  Attention(Attention&&) noexcept;  ///< A moved-from one may only be destroyed or assigned to.
  Attention& operator=(Attention&&) noexcept;  ///< Likewise.
  ~Attention();                                ///< No call may be running, on any thread or stream.

  /// @return The spec with its defaults filled in (head_dim_vo, o_dtype, sm_scale).
  [[nodiscard]] const AttentionSpec& spec() const noexcept;
  /// @return The limits that it was made with.
  [[nodiscard]] const BatchLimits& limits() const noexcept;
  /// @return Where it runs.
  [[nodiscard]] Device device() const noexcept;
  /// @return Name of the kernel that serves it, as in `quire info`.
  [[nodiscard]] std::string_view kernel() const noexcept;
  /// @return Bytes that `schedule()` and `run()` need.
  [[nodiscard]] WorkspaceSizes workspace_sizes() const noexcept;

  /// Cuts the batch into equal work. Once per step; every layer of the spec reuses the result.
  /// Does not allocate; on CUDA does not synchronise and may be captured in a graph.
  /// O(num_seqs), and the pages of shared prefixes for each request that has them, unless the batch names them
  /// (which the CPU and checked mode look at anyway).
  /// @param batch     See `Batch`.
  /// @param schedule  At least `workspace_sizes().schedule` bytes; any content.
  /// @return `kInvalidArgument` (a wrong shape, dtype, stride or device; on the CPU, and through
  ///   `CallOptions::check` elsewhere, a wrong length, offset or group too), `kTooLong` (more than
  ///   `BatchLimits` allow, seen where wrong values are), `kWorkspaceTooSmall` (or misaligned),
  ///   `kDeviceError`, `kOutOfMemory` (for the sentence of one of these).
  Status schedule(const Batch& batch, Workspace schedule,
                  const CallOptions& call = {}) const noexcept;

  /// Computes o (and lse). Does not allocate; on CUDA does not synchronise and may be captured.
  /// Every row of o and lse is written: rows beyond `qo_indptr[num_seqs]` get o = 0, lse = −inf.
  /// @param batch     The batch that `schedule` was made for.
  /// @param tensors   See `AttentionTensors`.
  /// @param schedule  As `schedule()` left it. Written while the call runs (runs that overlap in
  ///   time need schedules of their own); ready for the next `run()` afterwards.
  /// @param scratch   At least `workspace_sizes().scratch` bytes; any content.
  /// @return The codes of `schedule()`. `kInvalidArgument` also for a schedule that `schedule()`
  ///   did not leave for this batch (on the CPU; elsewhere it must not be given) and for page ids
  ///   that the cache does not have (on the CPU, where they are checked before they are followed;
  ///   elsewhere through `CallOptions::check`).
  Status run(const Batch& batch, const AttentionTensors& tensors, Workspace schedule,
             Workspace scratch, const CallOptions& call = {}) const noexcept;

  /// Counts what shared prefixes save a step. Does not allocate. O(num_seqs + pages of prefixes, for
  /// each request that shares them).
  /// @param batch     The batch that `schedule` was made for.
  /// @param schedule  As `schedule()` left it.
  /// @param reads     Written if the call succeeds. How a request is cut into tiles, some of which
  ///   read keys again, does not count.
  /// @return The codes of `run()`; `kUnsupported` but on the CPU.
  Status count_key_reads(const Batch& batch, Workspace schedule, KeyReads& reads) const noexcept;

 private:
  std::unique_ptr<const internal::AttentionBackend> backend_;
};

/// Schedules and runs one batch with workspaces of its own: for those who call once. Its
/// `BatchLimits` are what the shapes of q and of the table hold. Allocates.
/// @throws Error for everything that the constructor, `schedule()` and `run()` report.
QUIRE_API void attention(Device device, const AttentionSpec& spec, const Batch& batch,
                         const AttentionTensors& tensors, const CallOptions& call = {},
                         const AttentionOptions& options = {});

/// New keys and values on their way into the cache.
struct AppendTensors {
  TensorView k{};  ///< [total_q, num_kv_heads, D]: float32, float16 or bfloat16; strided as q.
  TensorView v{};  ///< [total_q, num_kv_heads, Dv], same dtype.
  /// `NHD` or `HND` pages; converted to this dtype, rounding to nearest even. 8-bit caches saturate:
  /// what lies beyond their numbers (±448, ±57344, −128 … 127) becomes the last of them; NaN stays
  /// NaN, and is 0 in int8.
  MutableTensorView k_cache{};
  MutableTensorView v_cache{};  ///< As many pages of the same layout, page size and dtype.
  /// int64 [total_q]: page · page_size + offset; negative skips the row. Not given: slots are
  /// derived from the batch: row i of a request goes to position kv_len − qo_len + i. Slots are
  /// distinct; which of two rows for one slot wins is unspecified.
  TensorView slot_mapping{};
  TensorView k_scale{};  ///< float32 [1] or [num_kv_heads]: stored value · scale = k. Not given: 1.
  TensorView v_scale{};  ///< Likewise for v.
  /// float32 [num_pages, num_kv_heads, page_size], strides free: the scales of `KvScale::kPerToken`
  /// are computed and written here, one for each row of k and head, such that the largest magnitude
  /// of its components becomes the largest number of an 8-bit cache (1 for a row of zeros). Given for
  /// both k and v or for neither, with 8-bit caches only, and not together with `k_scale` or
  /// `v_scale`.
  MutableTensorView k_token_scale{};
  MutableTensorView v_token_scale{};  ///< Likewise for v.
};

/// Writes new keys and values into their pages. Rows beyond `qo_indptr[num_seqs]` and rows before
/// position 0 are skipped. Does not allocate; on CUDA does not synchronise and may be captured.
/// O(rows · heads · head_dim).
/// @param layout  Of k_cache and v_cache, whose page_size is read from their shape.
/// @param batch   Read only if `slot_mapping` is not given: `qo_indptr` and a page table with
/// lengths.
/// @return `kInvalidArgument` (a wrong shape, dtype, slot or page id), `kTooLong` (a request of
///   more keys than int32 counts), `kUnsupported`, `kDeviceError`, `kOutOfMemory` (for the sentence
///   of one of these, or as `default_executor()` throws it); nothing is written then (on the CPU,
///   and on CUDA for what the host can see).
QUIRE_API Status append(Device device, KvLayout layout, const Batch& batch,
                        const AppendTensors& tensors, const CallOptions& call = {},
                        const AttentionOptions& options = {}) noexcept;

/// Partial results of the same queries over disjoint sets of keys.
struct MergeTensors {
  TensorView o_parts{};  ///< float32, float16 or bfloat16 [num_parts, total_q, num_heads, Dv].
  TensorView
      lse_parts{};  ///< float32 [num_parts, total_q, num_heads]; −inf for a part without keys.
  MutableTensorView
      o{};  ///< [total_q, num_heads, Dv]; may be part 0 itself, else must not overlap.
  MutableTensorView lse{};  ///< float32 [total_q, num_heads], or not given.
};

/// Joins partial results into the result over all keys: o = Σ exp(lse_p − lse) · o_p with
/// lse = log Σ exp(lse_p), in the order of the parts. A sink counts where its part sees a key:
/// give it to one part only, one in which every row sees a key.
/// Does not allocate; on CUDA does not synchronise and may be captured. O(size of o_parts).
/// @return `kInvalidArgument` (a wrong shape or dtype), `kUnsupported`, `kDeviceError`,
///   `kOutOfMemory` (as `append()`).
QUIRE_API Status merge_states(Device device, const MergeTensors& tensors,
                              const CallOptions& call = {},
                              const AttentionOptions& options = {}) noexcept;

/// What a `CheckRecord` can point at. The values are part of the C ABI.
enum class CheckedItem : std::int32_t {
  kNothing = 0,         ///< No offence was found.
  kQoIndptr = 1,        ///< An offset of `Batch::qo_indptr`.
  kKvLen = 2,           ///< A length of `Batch::kv_len`.
  kPageId = 3,          ///< A page of `Batch::page_table` or `Batch::kv_page_indices`.
  kKvPageIndptr = 4,    ///< An offset of `Batch::kv_page_indptr`.
  kKvLastPageLen = 5,   ///< A length of `Batch::kv_last_page_len`.
  kKvIndptr = 6,        ///< An offset of `Batch::kv_indptr`.
  kSlot = 7,            ///< A slot of `AppendTensors::slot_mapping`.
  kFullMaskIndptr = 8,  ///< An offset of `Batch::full_mask_indptr`.
  kMaxTotalQ = 9,       ///< An offset of `Batch::qo_indptr` beyond `BatchLimits::max_total_q`.
  kMaxKvLen = 10,       ///< The keys of a request, more than `BatchLimits::max_kv_len`.
  // Of these the position is a level, but of a page id that of the page.
  /// `Batch::prefix_leaders`: no request, or one below a level without a group. The bound is the number
  /// of requests, or 0 where only −1 will do.
  kPrefixLeader = 11,
  /// `Batch::prefix_leaders`: a leader is in another group than its request. The bound is the request's
  /// leader, the value its leader's.
  kPrefixTree = 12,
  kPrefixPages = 13,  ///< A number of `Batch::prefix_pages`. The bound is the limit that it passes.
  kPrefixPageId = 14,  ///< A page of a group is another than its leader's, which is the bound.
};

/// Reads the record of checked mode, which it leaves as it is, and turns it into its sentence.
/// Synchronises with `call.stream`. @return Ok if nothing was found, else the code that the CPU
///   gives the same offence: `kInvalidArgument` or `kTooLong`; `kInvalidArgument` for no record,
///   `kDeviceError`.
[[nodiscard]] QUIRE_API Status check_result(Device device, const CheckRecord* record,
                                            const CallOptions& call = {}) noexcept;

}  // namespace v0
}  // namespace quire
