// SPDX-License-Identifier: Apache-2.0
// The CPU backend: one call of the executor, in which every thread draws ranges of the schedule and
// hands their items to the tier. Split units are merged by whoever finishes last, in the order of
// the keys, and so are the results of queries that share prefixes (join.hpp), so that the result does
// not depend on who does what.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "core/backend.hpp"
#include "cpu/check_batch.hpp"
#include "cpu/check_prefixes.hpp"
#include "cpu/finish.hpp"
#include "cpu/join.hpp"
#include "cpu/tier.hpp"
#include "cpu/workspace.hpp"
#include "schedule/schedule.hpp"

namespace quire::cpu {
namespace {

/// Rows of padding that are written at a time.
constexpr std::int64_t kPaddingRows = 16;

/// One call of `run`, shared by its tasks.
struct RunContext {
  const Tier& tier;
  const ScratchLayout& layout;
  const schedule::Policy& policy;
  const core::ProblemShape& shape;
  const core::BatchArrays& batch;
  const core::LayerTensors& tensors;
  const schedule::ScheduleView& schedule;
  std::byte* scratch = nullptr;
  const Join join;
  std::atomic<std::int32_t> next_range{0};
  std::atomic<std::int64_t> next_padding{0};

  void work(std::int32_t task_index) noexcept {
    const std::int32_t ranges = schedule.header->overview.num_ranges[schedule::kSmallUnits];
    for (std::int32_t range = next_range.fetch_add(1, std::memory_order_relaxed); range < ranges;
         range = next_range.fetch_add(1, std::memory_order_relaxed)) {
      schedule::WorkCursor cursor(policy, shape, batch, schedule, schedule::kSmallUnits, range);
      do_range(cursor, task_index);
    }
    for (std::int64_t first = next_padding.fetch_add(kPaddingRows, std::memory_order_relaxed);
         first < tensors.total_q;
         first = next_padding.fetch_add(kPaddingRows, std::memory_order_relaxed)) {
      write_nothing(shape, tensors, first, std::min(first + kPaddingRows, tensors.total_q));
    }
  }

  void do_range(schedule::WorkCursor& cursor, std::int32_t task_index) const noexcept {
    schedule::WorkItem item;
    schedule::Lengths lengths;
    schedule::QueryPlace queries;  // of the segment's first query
    while (cursor.next(item, lengths, queries)) {
      queries.first += item.q_begin;
      if (queries.state != schedule::QueryPlace::kFinal) queries.state += item.q_begin;
      do_item({shape, batch, tensors, item, lengths, queries, schedule.listed,
               layout.task_states(scratch, task_index), layout.buffers(scratch, task_index)});
    }
  }

  void do_item(ItemTask task) const noexcept {
    const schedule::WorkItem& item = task.item;
    if (item.num_pieces == 1) {
      tier.attend(task);
      return finish(task);
    }
    const RowStates own = task.states;
    task.states = slot_of(item, item.piece);
    tier.attend(task);
    if (!is_last(item)) return;
    task.states = own;
    clear_states(task);
    for (std::int32_t piece = 0; piece < item.num_pieces; ++piece) {
      add_piece(tier, task, slot_of(item, piece));
    }
    finish(task);
  }

  /// Of a whole unit.
  void finish(const ItemTask& task) const {
    if (task.leaves_states()) {
      join.take(task);
    } else {
      write_results(tier, task);
    }
  }

  [[nodiscard]] RowStates slot_of(const schedule::WorkItem& item, std::int32_t piece) const {
    return layout.slot_states(scratch, schedule::partial_slot(item.first_range, piece));
  }

  /// Counts a finished piece. The last one sees the others' states and leaves the counter at 0.
  [[nodiscard]] bool is_last(const schedule::WorkItem& item) const {
    std::atomic_ref<std::uint32_t> arrivals(
        schedule.lines[schedule::kSmallUnits].arrivals[item.first_range]);
    const auto pieces = static_cast<std::uint32_t>(item.num_pieces);
    if (arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 < pieces) return false;
    arrivals.store(0, std::memory_order_relaxed);
    return true;
  }
};

class CpuAttention final : public internal::AttentionBackend {
 public:
  CpuAttention(const core::AttentionConfig& attention_config, const Tier& tier,
               const schedule::Policy& policy, const ScratchLayout& layout,
               WorkspaceSizes workspaces)
      : AttentionBackend(attention_config, workspaces),
        tier_(tier),
        policy_(policy),
        layout_(layout) {}

  Status schedule(const core::BatchArrays& batch, const core::PrefixGroups& groups,
                  Workspace schedule, const CallOptions& call) const noexcept override {
    return checked(call, "schedule", [&](const CheckContext& context) {
      Status status = check_batch(context, config.shape, config.limits, batch);
      if (status.ok() && schedule::looks_for_prefixes(policy_)) {
        status = check_groups(context, config.shape, config.limits, batch, groups);
      }
      if (status.ok()) schedule::build(policy_, config.shape, batch, view_of(schedule), groups);
      return status;
    });
  }

  Status run(const core::BatchArrays& batch, const core::LayerTensors& tensors, Workspace schedule,
             Workspace scratch, const CallOptions& call) const noexcept override {
    return checked(call, "attention", [&](const CheckContext& context) {
      Status status = check_batch(context, config.shape, config.limits, batch);  // may have changed
      if (status.ok()) status = check_schedule(context, batch, view_of(schedule));
      if (status.ok()) status = check_layer(context, config.shape, batch, tensors);
      if (status.ok()) compute(batch, tensors, view_of(schedule), scratch.data());
      return status;
    });
  }

  Status count_key_reads(const core::BatchArrays& batch, Workspace schedule,
                         KeyReads& reads) const noexcept override {
    return checked({}, "key reads", [&](const CheckContext& context) {
      Status status = check_batch(context, config.shape, config.limits, batch);
      if (status.ok()) status = check_schedule(context, batch, view_of(schedule));
      if (status.ok()) reads = key_reads(batch, view_of(schedule));
      return status;
    });
  }

 private:
  /// Runs `body` with the caller's check record; only texts of failures allocate.
  template <typename Body>
  static Status checked(const CallOptions& call, std::string_view operation,
                        const Body& body) noexcept {
    try {
      return body(CheckContext{operation, call.check});
    } catch (const std::bad_alloc&) {
      return {ErrorCode::kOutOfMemory, {}};
    }
  }

  [[nodiscard]] schedule::ScheduleView view_of(Workspace workspace) const {
    return schedule::view_of(policy_, config.limits.max_num_seqs, workspace.data());
  }

  /// A workspace that `schedule()` did not fill for this batch must not be followed.
  [[nodiscard]] Status check_schedule(const CheckContext& context, const core::BatchArrays& batch,
                                      schedule::ScheduleView schedule) const {
    if (schedule::describes(schedule, policy_, config.shape, batch) &&
        shares_prefixes(config.shape, batch, schedule)) {
      return {};
    }
    return context.refuse({}, fmt::format("schedule workspace: expected what schedule() leaves "
                                          "for a batch of {} requests, got something else",
                                          batch.num_seqs));
  }

  [[nodiscard]] KeyReads key_reads(const core::BatchArrays& batch,
                                   const schedule::ScheduleView& schedule) const {
    const auto keys_of = [&](const schedule::Segment& segment) -> std::int64_t {
      const std::int32_t queries = segment.lengths.qo_len;
      if (queries == 0) return 0;
      const schedule::KeyRange keys = schedule::visible_keys(config.shape, segment, 0, queries);
      return std::max(0, keys.end - keys.begin);
    };
    KeyReads reads;
    for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
      reads.apart += keys_of(schedule::whole_segment(config.shape, batch, seq));
    }
    const schedule::StoredSegment* const segments = schedule::segments_of(schedule);
    for (std::int32_t index = 0; index < schedule.header->num_segments; ++index) {
      reads.grouped += keys_of(schedule::segment_of(config.shape, batch, segments, index));
    }
    return reads;
  }

  void compute(const core::BatchArrays& batch, const core::LayerTensors& tensors,
               const schedule::ScheduleView& schedule, std::byte* scratch) const {
    RunContext context{
        tier_,        layout_, policy_,
        config.shape, batch,   tensors,
        schedule,     scratch, Join(tier_, schedule, layout_.waiting_states(scratch))};
    const std::int64_t padding = batch.qo_indptr[batch.num_seqs];
    context.next_padding.store(padding, std::memory_order_relaxed);
    const std::int64_t parts =
        std::max<std::int64_t>(schedule.header->overview.num_ranges[schedule::kSmallUnits],
                               (tensors.total_q - padding + kPaddingRows - 1) / kPaddingRows);
    const auto tasks =
        static_cast<std::int32_t>(std::min<std::int64_t>(parts, layout_.num_tasks()));
    if (tasks <= 1) {
      context.work(0);
      return;
    }
    config.executor->parallel(
        tasks,
        [](void* opaque, std::int32_t task_index) noexcept {
          static_cast<RunContext*>(opaque)->work(task_index);
        },
        &context);
  }

  const Tier& tier_;
  const schedule::Policy policy_;
  const ScratchLayout layout_;
};

/// Everything that follows from a config.
struct Plan {
  explicit Plan(const core::AttentionConfig& config)
      : tier(tier_of(*config.kernel)),
        threads(config.executor->concurrency()),
        policy(policy_for(tier, config)),
        layout(tier, config.shape, policy, threads) {
    sizes.schedule = schedule::schedule_bytes(policy, config.limits.max_num_seqs);
    sizes.scratch = layout.bytes();
  }

  const Tier& tier;
  std::int32_t threads;
  schedule::Policy policy;
  ScratchLayout layout;
  WorkspaceSizes sizes;
};

}  // namespace

std::unique_ptr<internal::AttentionBackend> make_attention(const core::AttentionConfig& config) {
  const Plan plan(config);
  return std::make_unique<CpuAttention>(config, plan.tier, plan.policy, plan.layout, plan.sizes);
}

WorkspaceSizes workspace_sizes(const core::AttentionConfig& config) { return Plan(config).sizes; }

}  // namespace quire::cpu
