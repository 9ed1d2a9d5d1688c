// SPDX-License-Identifier: Apache-2.0
// The C headers as a C++17 program sees it: every initialiser, and functions that do not throw.
#include "quire/quire.h"
#include "quire/serving.h"

static_assert(__cplusplus == 201703L, "this file checks C++17");

namespace {

[[maybe_unused]] constexpr quire_tensor kTensor = QUIRE_TENSOR_NONE;
[[maybe_unused]] constexpr quire_executor_callbacks kCallbacks = QUIRE_EXECUTOR_CALLBACKS_INIT;
[[maybe_unused]] constexpr quire_attention_spec kSpec = QUIRE_ATTENTION_SPEC_INIT;
[[maybe_unused]] constexpr quire_batch_limits kLimits = QUIRE_BATCH_LIMITS_INIT;
[[maybe_unused]] constexpr quire_attention_options kOptions = QUIRE_ATTENTION_OPTIONS_INIT;
[[maybe_unused]] constexpr quire_batch kBatch = QUIRE_BATCH_INIT;
[[maybe_unused]] constexpr quire_attention_tensors kTensors = QUIRE_ATTENTION_TENSORS_INIT;
[[maybe_unused]] constexpr quire_call_options kCall = QUIRE_CALL_OPTIONS_INIT;
[[maybe_unused]] constexpr quire_append_tensors kAppend = QUIRE_APPEND_TENSORS_INIT;
[[maybe_unused]] constexpr quire_merge_tensors kMerge = QUIRE_MERGE_TENSORS_INIT;
[[maybe_unused]] constexpr quire_page_pool_spec kPool = QUIRE_PAGE_POOL_SPEC_INIT;
[[maybe_unused]] constexpr quire_page_table_spec kTable = QUIRE_PAGE_TABLE_SPEC_INIT;
[[maybe_unused]] constexpr quire_kernel_info kKernel = QUIRE_KERNEL_INFO_INIT;
[[maybe_unused]] constexpr quire_device_info kDevice = QUIRE_DEVICE_INFO_INIT;
[[maybe_unused]] constexpr quire_prefix_cache_spec kPrefixCacheSpec = QUIRE_PREFIX_CACHE_SPEC_INIT;
[[maybe_unused]] constexpr quire_retention kRetention = QUIRE_RETENTION_INIT;
[[maybe_unused]] constexpr quire_prefix_cache_stats kPrefixCacheStats =
    QUIRE_PREFIX_CACHE_STATS_INIT;
[[maybe_unused]] constexpr quire_staged_batch kStagedBatch = QUIRE_STAGED_BATCH_INIT;
[[maybe_unused]] constexpr quire_batcher_spec kBatcherSpec = QUIRE_BATCHER_SPEC_INIT;
[[maybe_unused]] constexpr quire_request kRequest = QUIRE_REQUEST_INIT;
[[maybe_unused]] constexpr quire_step_budget kStepBudget = QUIRE_STEP_BUDGET_INIT;
[[maybe_unused]] constexpr quire_batcher_stats kBatcherStats = QUIRE_BATCHER_STATS_INIT;
[[maybe_unused]] constexpr quire_recorder_spec kRecorderSpec = QUIRE_RECORDER_SPEC_INIT;

static_assert(noexcept(quire_last_error()), "no exception crosses the C ABI");

}  // namespace
