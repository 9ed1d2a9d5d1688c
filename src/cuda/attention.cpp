// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: a schedule made by one small kernel per step, and one attention kernel per
// layer, whose blocks take shares of it. Nothing here depends on the batch, so that a captured graph
// serves every batch within the limits.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>

#include "core/backend.hpp"
#include "cuda/attend/params.hpp"
#include "cuda/check/kernel.hpp"
#include "cuda/common/nvtx.hpp"
#include "cuda/kernels.hpp"
#include "cuda/runtime.hpp"
#include "cuda/schedule/kernel.hpp"
#include "cuda/simt/instances.hpp"
#include "cuda/sm90/tile_maps.hpp"
#include "cuda/timeline/writer.hpp"
#include "schedule/schedule.hpp"

namespace quire::cuda {
namespace {

/// Workspaces are sized for so many, so that their sizes are known without a device; a larger
/// device is not filled.
constexpr std::int32_t kMostMultiprocessors = 160;
static_assert(2LL * kMostMultiprocessors * simt::kBlocksPerMultiprocessor * simt::kMaxGroupSize *
                      simt::kMaxHeadDim <=
                  INT32_MAX,
              "elements of partial results are counted by 32 bits");

/// Bytes for results that wait to be joined with those of shared prefixes.
constexpr std::int64_t kStateBytes = 11 << 20;

/// Rows (queries × heads of a group) of a request up to which it shares prefixes: with more of them its
/// own tiles are well used.
constexpr std::int32_t kMostRowsToShare = 64;

/// Keys of a part where results do not depend on the batch: with fewer, batches that fill the machine
/// anyway lose more than small ones gain (notebook of the schedule).
constexpr std::int32_t kFixedPartKeys = 2048;

/// Bytes that queries, keys and values are read at once.
constexpr std::int64_t kAlignment = 16;

/// Whether queries may attend to some of their request's earlier keys apart from the others: all see
/// all of them, and nothing depends on how far away they are.
bool can_divide_keys(const core::AttentionConfig& config) {
  const core::ProblemShape& shape = config.shape;
  return shape.mask != Mask::kFull && shape.window_left < 0 && !config.spec.alibi;
}

/// When shared prefixes are read once for all who share them. Their results cost two trips through
/// the second-level cache, and the batch ends later, since the last ones are joined when all else is
/// done: by what two tiles of every range take.
schedule::PrefixPolicy prefix_policy(const core::AttentionConfig& config,
                                     const schedule::TilePolicy& small) {
  const core::ProblemShape& shape = config.shape;
  schedule::PrefixPolicy prefixes;
  if (!config.spec.share_prefixes || !can_divide_keys(config) || shape.page_size == kContiguousKv ||
      config.limits.max_num_seqs < 2) {
    return prefixes;
  }
  const std::int64_t state_bytes = static_cast<std::int64_t>(shape.num_qo_heads) *
                                   (shape.head_dim_vo + 2) *
                                   static_cast<std::int64_t>(sizeof(float));
  const std::int64_t most_states =
      static_cast<std::int64_t>(config.limits.max_total_q) * (schedule::kPrefixLevels + 1);
  prefixes.max_states = static_cast<std::int32_t>(std::min(most_states, kStateBytes / state_bytes));
  prefixes.num_kv_heads = shape.num_kv_heads;
  prefixes.most_rows = kMostRowsToShare;
  prefixes.queries_per_cost = 1;
  prefixes.least_gain = std::int64_t{2} * small.cost_of_tile * small.num_ranges *
                        small.heads_abreast / shape.num_kv_heads;
  return prefixes;
}

/// Lets nothing depend on the batch: no unit is split, and keys are divided at fixed places.
void make_invariant(const core::AttentionConfig& config, schedule::Policy& policy) {
  for (schedule::TilePolicy& line : policy.lines) line.min_split_tiles = INT32_MAX;
  if (!can_divide_keys(config)) return;
  policy.fixed_part_keys = kFixedPartKeys;
  const std::int64_t most_requests =
      std::min(config.limits.max_num_seqs, config.limits.max_total_q);
  policy.prefixes.max_states = static_cast<std::int32_t>(
      std::min<std::int64_t>(schedule::kMostFixedParts * most_requests, INT32_MAX));
  policy.prefixes.num_kv_heads = config.shape.num_kv_heads;
}

/// Rows of a request up to which its units are small.
std::int32_t large_request_rows(const core::AttentionConfig& config) {
  return config.spec.batch_invariant ? kLargeRequestRowsIfInvariant : kLargeRequestRows;
}

/// @param shares  Of small units: a range in one of the heads that go abreast each. Shares that read
///   the same pages at the same time, for different heads, find page ids in the second-level cache and
///   rows of memory open.
/// @param heads_abreast  At most; as many as divide heads and shares.
schedule::Policy policy_for(const core::AttentionConfig& config, const AttendKernel& kernel,
                            std::int32_t shares, std::int32_t heads_abreast) {
  const auto abreast = [&](std::int32_t of_line) {
    return std::min(heads_abreast, std::gcd(config.shape.num_kv_heads, of_line));
  };
  schedule::TilePolicy small;
  small.keys_per_tile = kernel.tile_keys;
  small.tile_rows = kernel.tile_rows;
  small.all_heads_rows = 0;  // kernels take one kv head at a time
  small.heads_abreast = abreast(shares);
  small.num_ranges = shares / small.heads_abreast;
  small.min_split_tiles = 1;
  small.cost_of_unit = 4;
  small.cost_of_tile = 4;  // reading it is what takes time
  small.cost_of_row = 0;
  small.min_range_cost = 4;
  schedule::Policy policy(small);
  if (kernel.large_tile_rows > 0) {
    const std::int32_t rows = large_request_rows(config);
    policy.lines[schedule::kSmallUnits].up_to_rows = rows;
    schedule::TilePolicy& large = policy.lines[schedule::kLargeUnits];
    large = small;
    large.over_rows = rows;
    large.keys_per_tile = kernel.large_tile_keys;
    large.tile_rows = kernel.large_tile_rows;
    large.min_split_tiles = 4;
    // A large tile costs as much as 3.5 small ones of a multiprocessor's time while others read, a unit's
    // begin and end as much as 1.6 tiles: measured (notebooks of prefill and of shared prefixes).
    large.cost_of_unit = 22;
    large.cost_of_tile = 14;
    large.min_range_cost = large.cost_of_unit + large.cost_of_tile;
    large.ranges_in_turn = kernel.shares_per_block;
    policy.workers = shares / kernel.shares_per_block;
    policy.lines[schedule::kSmallUnits].shares_at_once = kernel.shares_per_block;
    policy.lines[schedule::kSmallUnits].most_workers = policy.workers * 5 / 6;  // memory is busy
    policy.cost_of_change = 48;
  }
  if (config.spec.batch_invariant) {
    make_invariant(config, policy);
  } else {
    policy.prefixes = prefix_policy(config, small);
  }
  return policy;
}

/// Where partial results lie in the scratch workspace.
class ScratchLayout {
 public:
  ScratchLayout(const core::ProblemShape& shape, const schedule::Policy& policy)
      : head_dim_(static_cast<std::size_t>(shape.head_dim_vo)),
        num_pieces_(static_cast<std::size_t>(schedule::max_listed(policy)) *
                    (schedule::kPrefixLevels + 1) * static_cast<std::size_t>(shape.num_kv_heads)) {
    for (int line = 0; line < schedule::kLines; ++line) {
      const schedule::TilePolicy& tiles = policy.lines[line];
      states_.first_row[line] = states_.first_state;
      states_.max_rows[line] = schedule::max_item_rows(tiles, shape);
      states_.first_state += 2 * tiles.num_ranges * tiles.heads_abreast * states_.max_rows[line];
    }
    const std::int64_t rows =
        states_.first_state + std::int64_t{policy.prefixes.max_states} * shape.num_qo_heads;
    if (rows * shape.head_dim_vo > INT32_MAX) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("[attention] batch_invariant: expected limits of which {} results of "
                              "{} heads of {} have less than 2^31 elements, got {}",
                              policy.prefixes.max_states, shape.num_qo_heads, shape.head_dim_vo,
                              rows * shape.head_dim_vo));
    }
    rows_ = static_cast<std::size_t>(rows);
  }

  [[nodiscard]] std::size_t bytes() const {
    return num_pieces_ * sizeof(PieceRows) + rows_ * (head_dim_ + 2) * sizeof(float);
  }
  [[nodiscard]] PartialStates states(std::byte* scratch) const {
    PartialStates states = states_;
    states.pieces = reinterpret_cast<PieceRows*>(scratch);
    states.o = reinterpret_cast<float*>(states.pieces + num_pieces_);
    states.max_and_sum = reinterpret_cast<float2*>(states.o + rows_ * head_dim_);
    return states;
  }

 private:
  PartialStates states_;  // without memory
  std::size_t head_dim_;
  std::size_t num_pieces_;
  std::size_t rows_ = 0;
};

WorkspaceSizes sizes_for(const core::AttentionConfig& config, const AttendKernel& kernel) {
  const schedule::Policy most =
      policy_for(config, kernel, kMostMultiprocessors * kernel.shares_per_multiprocessor(), 1);
  return {schedule::schedule_bytes(most, config.limits.max_num_seqs),
          ScratchLayout(config.shape, most).bytes()};
}

std::int32_t attribute_of(std::int32_t device, cudaDeviceAttr attribute) {
  int value = 0;
  throw_if_error("attention", cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

/// What the device gives, or what `QUIRE_CUDA_SHARED_MEMORY` (bytes) says instead.
std::size_t shared_memory_of(std::int32_t device) {
  int bytes = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const char* forced = std::getenv("QUIRE_CUDA_SHARED_MEMORY");
  if (forced != nullptr) bytes = std::clamp(std::atoi(forced), 0, bytes);
  return static_cast<std::size_t>(bytes);
}

/// The first kernel that the device can run, and that has no large units if no batch can.
AttendKernel choose_kernel(const core::AttentionConfig& config) {
  const std::int32_t device = config.device.index;
  const std::vector<AttendKernel> kernels = kernels_for(config);
  const std::int64_t most_rows =
      static_cast<std::int64_t>(config.limits.max_total_q) * config.shape.group_size;
  const std::size_t shared_bytes = shared_memory_of(device);
  const std::int32_t capability = 10 * attribute_of(device, cudaDevAttrComputeCapabilityMajor) +
                                  attribute_of(device, cudaDevAttrComputeCapabilityMinor);
  for (const AttendKernel& kernel : kernels) {
    const bool is_for_device =
        kernel.compute_capability == 0 || kernel.compute_capability == capability;
    const bool is_too_much = kernel.large_tile_rows > 0 && most_rows <= large_request_rows(config);
    if (is_for_device && !is_too_much && kernel.shared_bytes <= shared_bytes) return kernel;
  }
  return kernels.back();
}

/// Loads the kernel onto the current device, so that its first launch may be captured.
void prepare(const AttendKernel& kernel) {
  const auto bytes = static_cast<int>(kernel.shared_bytes);
  throw_if_error(
      "attention",
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  throw_if_error("attention",
                 cudaFuncSetAttribute(
                     kernel.function, cudaFuncAttributePreferredSharedMemoryCarveout,
                     bytes == 0 ? cudaSharedmemCarveoutDefault : cudaSharedmemCarveoutMaxShared));
}

bool is_aligned(const void* data, std::int64_t element_size,
                std::initializer_list<std::int64_t> strides, std::int64_t alignment) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  return address % static_cast<std::uintptr_t>(alignment) == 0 &&
         std::all_of(strides.begin(), strides.end(),
                     [&](std::int64_t stride) { return stride * element_size % alignment == 0; });
}

/// A stride that is used: of an axis of more than one element.
std::int64_t used(std::int64_t stride, std::int64_t size) { return size > 1 ? stride : 0; }

class CudaAttention final : public internal::AttentionBackend {
 public:
  CudaAttention(const core::AttentionConfig& attention_config, const AttendKernel& kernel,
                const schedule::Policy& policy, std::int32_t blocks, std::size_t near_bytes,
                WorkspaceSizes workspaces)
      : AttentionBackend(attention_config, workspaces),
        kernel_(kernel),
        policy_(policy),
        near_bytes_(near_bytes),
        layout_(config.shape, policy_),
        blocks_(blocks) {}

  Status schedule(const core::BatchArrays& batch, const core::PrefixGroups& groups,
                  Workspace schedule, const CallOptions& call) const noexcept override {
    const NvtxRange range("Attention::schedule");
    const CurrentDevice current(config.device);
    auto* const stream = static_cast<cudaStream_t>(call.stream);
    cudaError_t error = current.error();
    if (error == cudaSuccess && call.check != nullptr) {
      const bool are_used = schedule::looks_for_prefixes(policy_);
      error = launch_check_step(config.shape, config.limits, batch,
                                are_used ? groups : core::PrefixGroups{}, call.check, stream);
    }
    if (error == cudaSuccess) {
      error = launch_schedule(policy_, config.shape, batch, groups, view_of(schedule), near_bytes_,
                              call.check, stream);
    }
    return status_of("schedule", error);
  }

  Status run(const core::BatchArrays& batch, const core::LayerTensors& tensors, Workspace schedule,
             Workspace scratch, const CallOptions& call) const noexcept override {
    const NvtxRange range("Attention::run");
    if (const char* unaligned = find_unaligned(tensors)) {
      return refuse_unaligned(unaligned);
    }
    const CurrentDevice current(config.device);
    auto* const stream = static_cast<cudaStream_t>(call.stream);
    cudaError_t error = current.error();
    if (error == cudaSuccess && call.check != nullptr) {
      error = launch_check_layer(config.shape, config.limits, batch, tensors, call.check, stream);
    }
    if (error == cudaSuccess) {
      AttendParams params;
      params.policy = policy_;
      params.shape = config.shape;
      params.batch = batch;
      params.tensors = tensors;
      params.schedule = view_of(schedule);
      params.partials = layout_.states(scratch.data());
      params.group_size = FastDivisor(config.shape.group_size);
      params.page_size = FastDivisor(std::max(1, config.shape.page_size));
      params.has_linear_logits =
          config.shape.logits_soft_cap == 0.0F && tensors.alibi_slopes == nullptr ? 1 : 0;
      params.check = call.check;
      params.timeline = recorder_;
      sm90::TileMaps maps;
      if (kernel_.takes_tile_maps) {
        maps = sm90::make_tile_maps(config.shape, tensors, kernel_.large_tile_rows);
      }
      std::array<void*, 2> arguments{&params, &maps};
      error = cudaLaunchKernel(kernel_.function, dim3(static_cast<unsigned>(blocks_)),
                               dim3(static_cast<unsigned>(kernel_.threads)), arguments.data(),
                               kernel_.shared_bytes, stream);
    }
    return status_of("attention", error);
  }

 private:
  [[nodiscard]] schedule::ScheduleView view_of(Workspace workspace) const {
    return schedule::view_of(policy_, config.limits.max_num_seqs, workspace.data());
  }

  /// @return The name of a tensor whose rows do not begin where kernels can read or write them.
  [[nodiscard]] const char* find_unaligned(const core::LayerTensors& tensors) const {
    const core::ProblemShape& shape = config.shape;
    const auto q_size = static_cast<std::int64_t>(size_of(shape.q_dtype));
    const auto kv_size = static_cast<std::int64_t>(size_of(shape.kv_dtype));
    const auto o_size = static_cast<std::int64_t>(size_of(shape.o_dtype));
    const auto rows = [&](const auto& x, std::int64_t size, std::int64_t alignment) {
      return is_aligned(
          x.data, size,
          {used(x.token_stride, tensors.total_q), used(x.head_stride, shape.num_qo_heads)},
          alignment);
    };
    const auto pages = [&](const core::Pages& x) {
      return is_aligned(x.data, kv_size,
                        {used(x.page_stride, x.num_pages), used(x.token_stride, x.num_tokens),
                         used(x.head_stride, shape.num_kv_heads)},
                        kAlignment);
    };
    if (!rows(tensors.q, q_size, kAlignment)) return "q";
    if (!pages(tensors.k)) return "k";
    if (!pages(tensors.v)) return "v";
    return rows(tensors.o, o_size, 2 * o_size) ? nullptr : "o";
  }

  [[nodiscard]] static Status refuse_unaligned(const char* name) noexcept {
    try {
      return {ErrorCode::kInvalidArgument,
              fmt::format("[attention] {}: expected rows that begin at multiples of {}, got others",
                          name, name[0] == 'o' ? "two elements" : "16 bytes")};
    } catch (const std::exception&) {
      return {ErrorCode::kOutOfMemory, {}};
    }
  }

  const AttendKernel kernel_;
  const schedule::Policy policy_;
  const std::size_t near_bytes_;  // of shared memory, to make schedules in
  const ScratchLayout layout_;
  const std::int32_t blocks_;
  const timeline::Recorder<timeline::kIsBuilt> recorder_ = timeline::recorder(blocks_);
};

}  // namespace

WorkspaceSizes workspace_sizes(const core::AttentionConfig& config) {
  WorkspaceSizes most;
  for (const AttendKernel& kernel : kernels_for(config)) {
    const WorkspaceSizes sizes = sizes_for(config, kernel);
    most.schedule = std::max(most.schedule, sizes.schedule);
    most.scratch = std::max(most.scratch, sizes.scratch);
  }
  return most;
}

std::unique_ptr<internal::AttentionBackend> make_attention(const core::AttentionConfig& config) {
  const CurrentDevice current(config.device);
  throw_if_error("attention", current.error());
  const AttendKernel kernel = choose_kernel(config);
  prepare(kernel);
  if (kernel.takes_tile_maps) sm90::prepare_tile_maps();
  std::size_t near_bytes = 0;
  throw_if_error("attention", prepare_schedule(shared_memory_of(config.device.index), near_bytes));
  const std::int32_t shares =
      std::min(attribute_of(config.device.index, cudaDevAttrMultiProcessorCount),
               kMostMultiprocessors) *
      kernel.shares_per_multiprocessor();
  return std::make_unique<CudaAttention>(
      config, kernel, policy_for(config, kernel, shares, config.shape.num_kv_heads),
      shares / kernel.shares_per_block, near_bytes, workspace_sizes(config));
}

}  // namespace quire::cuda
