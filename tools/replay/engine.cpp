// SPDX-License-Identifier: Apache-2.0
#include "replay/engine.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <memory>
#include <utility>

#include "memory.hpp"
#include "quire/batch_builder.hpp"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"
#include "replay/prompt.hpp"

namespace quire::tool {
namespace {

/// Requests that wait in the batcher when there are more. Where attention is computed: enough for a
/// step to admit as many as it can, few enough that a replay ends soon after its duration. Where
/// time is simulated: all that have arrived, so that the queue is as long as it would be.
constexpr std::int32_t kQueueAhead = 16;
constexpr std::int32_t kSimulatedQueue = 1 << 20;

/// A trace may say that nothing was generated; the batcher samples at least once.
std::int32_t new_tokens(const TraceRequest& request) { return std::max(request.output_tokens, 1); }

/// Tokens in cache at a request's end: the last token is sampled but never cached.
std::int32_t cached_tokens(const TraceRequest& request) {
  return request.input_tokens + new_tokens(request) - 1;
}

std::int32_t tokens_of_pool(const ReplayOptions& options) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  return static_cast<std::int32_t>(
      std::min(kMost, std::int64_t{options.pages} * options.shape.page_size));
}

/// What the requests come to that the pool can hold.
struct Work {
  std::int32_t longest = 1;  ///< Tokens in cache.
  std::int64_t tokens = 0;
};

Work work_of(std::span<const TraceRequest> requests, std::int32_t pool_tokens) {
  Work work;
  for (const TraceRequest& request : requests) {
    const std::int32_t cached = cached_tokens(request);
    if (cached > pool_tokens) continue;
    work.longest = std::max(work.longest, cached);
    work.tokens += cached;
  }
  return work;
}

/// The batcher has room for all that wait and all that run.
BatcherSpec batcher_spec(const ReplayOptions& options, std::size_t num_requests) {
  constexpr std::int64_t kLeast = 65536;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::int64_t waiting = options.attention ? kQueueAhead : kSimulatedQueue;
  const std::int64_t useful = std::max<std::int64_t>(1, static_cast<std::int64_t>(num_requests));
  return {static_cast<std::int32_t>(
      std::min({std::max(kLeast, waiting + options.max_seqs), useful, kMost}))};
}

/// Latencies of every request, and, if asked for, all that a report draws.
RecorderSpec recorder_spec(const ReplayOptions& options, std::size_t num_requests) {
  constexpr std::int64_t kMostEnded = std::int64_t{1} << 24;
  constexpr std::int32_t kMostSteps = 1 << 22;
  constexpr std::int64_t kEventsPerRequest = 64;
  constexpr std::int64_t kMostEvents = std::int64_t{1} << 24;
  const std::int64_t requests = std::max<std::int64_t>(1, static_cast<std::int64_t>(num_requests));
  RecorderSpec spec;
  spec.max_ended = static_cast<std::int32_t>(std::min(requests, kMostEnded));
  spec.max_requests = batcher_spec(options, num_requests).max_requests;
  spec.max_steps = options.keep_steps ? kMostSteps : 1;
  spec.max_events =
      options.keep_steps
          ? static_cast<std::int32_t>(std::min(kEventsPerRequest * requests, kMostEvents))
          : 1;
  return spec;
}

std::vector<TailWaste> tail_waste_of(std::span<const TraceRequest> requests) {
  constexpr double kPercent = 100;
  std::vector<std::int32_t> lengths;
  lengths.reserve(requests.size());
  for (const TraceRequest& request : requests) {
    lengths.push_back(request.input_tokens + new_tokens(request));
  }
  std::vector<TailWaste> waste;
  for (const std::int32_t page_size : {16, 32, 64, 128, 256}) {
    const MemoryFigures figures = memory_figures(lengths, page_size);
    const auto empty = static_cast<double>(figures.paged - figures.used);
    const auto paged = static_cast<double>(std::max<std::int64_t>(1, figures.paged));
    waste.push_back({page_size, kPercent * empty / paged});
  }
  return waste;
}

/// What computes and what checks.
struct Model {
  Model(const ReplayOptions& options, std::int32_t max_kv_len)
      : layers(options, max_kv_len),
        checker(layers.spec(), layers.last_layer(), layers.q_noise(), layers.kv_noise(),
                layers.given_scales(), options.seed) {}
  Layers layers;
  SpotChecker checker;
};

/// Schedules steps as the CPU would, to tell what they read.
class ReadCounter {
 public:
  ReadCounter(const ReplayOptions& options, std::int32_t max_kv_len)
      : attention_(Device::cpu(), options.shape.spec(),
                   {options.max_seqs, options.max_tokens_per_step, max_kv_len}),
        schedule_(attention_.workspace_sizes().schedule) {}

  void count(const StagedBatch& staged, KeyReads& sums) {
    const Batch batch = staged.dense(staged.bytes.data(), Device::cpu());
    attention_.schedule(batch, schedule_.bytes()).throw_if_error();
    KeyReads reads;
    attention_.count_key_reads(batch, schedule_.bytes(), reads).throw_if_error();
    sums.apart += reads.apart;
    sums.grouped += reads.grouped;
  }

 private:
  Attention attention_;
  Buffer schedule_;
};

/// With a window pages go back as it moves on, unless a cache keeps them.
PageTableSpec table_spec(const ReplayOptions& options, std::int32_t longest) {
  const bool keeps = options.prefix_cache || options.host_pages > 0;
  return {.max_seqs = options.max_seqs,
          .max_tokens_per_seq = longest,
          .window_left = keeps ? -1 : options.shape.window};
}

std::optional<PrefixCache> make_cache(const ReplayOptions& options, PagePool& pool,
                                      PagePool& host) {
  if (options.host_pages > 0) {
    return PrefixCache(pool, host,
                       {.costs = tier_costs(options.cost, options.shape, options.layers)});
  }
  if (options.prefix_cache) return PrefixCache(pool);
  return std::nullopt;
}

class Engine {
 public:
  Engine(const ReplayOptions& options, std::span<const TraceRequest> requests)
      : options_(options),
        requests_(requests),
        work_(work_of(requests, tokens_of_pool(options))),
        pool_({options.pages, options.shape.page_size}),
        table_(pool_, table_spec(options, work_.longest)),
        host_({std::max(options.host_pages, 1), options.shape.page_size}),
        cache_(make_cache(options, pool_, host_)),
        batcher_(cache_ ? Batcher(table_, *cache_, batcher_spec(options, requests.size()))
                        : Batcher(table_, batcher_spec(options, requests.size()))),
        builder_(table_),
        recorder_(recorder_spec(options, requests.size())) {
    if (options.keep_pages) report_.pages.emplace(options.pages);
    if (options.keep_pages && cache_) {
      report_.tree = std::make_unique<PrefixTree>(options.pages, options.host_pages);
      cache_->set_listener(report_.tree.get());
    }
    if (options.prefix_cache) reads_ = std::make_unique<ReadCounter>(options, work_.longest);
    if (!options.attention) return;
    model_ = std::make_unique<Model>(options, work_.longest);
  }

  ReplayReport run(const ReplayProgress& progress) {
    static_cast<void>(wall_.lap());  // filling the caches is no part of serving
    while (step()) {
      const BatcherStats stats = batcher_.stats();
      const auto tokens = static_cast<double>(stats.prefill_tokens + stats.decode_tokens +
                                              stats.hit_tokens - stats.recomputed_tokens);
      const double served = tokens / static_cast<double>(std::max<std::int64_t>(1, work_.tokens));
      const double passed =
          options_.duration_s > 0 ? std::min(1.0, elapsed() / options_.duration_s) : 0;
      progress(std::max(served, passed), stats);
    }
    finish();
    return std::move(report_);
  }

 private:
  [[nodiscard]] double elapsed() {
    report_.wall_s += wall_.lap();
    return report_.wall_s;
  }

  /// Hands requests to the batcher. @return False if no more will come.
  bool take_in() {
    const bool over = options_.duration_s > 0 && elapsed() >= options_.duration_s;
    while (!over && next_ < requests_.size() && has_room()) {
      const TraceRequest& request = requests_[next_];
      const bool timed = options_.arrivals == Arrivals::kTrace;
      if (timed && batcher_.idle()) {
        report_.virtual_s = std::max(report_.virtual_s, request.arrival_s);
      }
      if (timed && request.arrival_s > report_.virtual_s) break;
      submit(request, timed ? request.arrival_s : 0);
      ++next_;
    }
    return !over && next_ < requests_.size();
  }

  [[nodiscard]] bool has_room() const {
    const BatcherStats stats = batcher_.stats();
    return stats.waiting < (options_.attention ? kQueueAhead : kSimulatedQueue) &&
           stats.waiting + stats.running < recorder_.spec().max_requests;
  }

  void submit(const TraceRequest& trace, double arrival) {
    Request request = {next_, trace.input_tokens, new_tokens(trace), arrival};
    if (cache_) {
      write_prompt(trace, next_, tokens_);
      request.prompt = tokens_;
      if (!options_.prefix_cache) request.name_space = next_;  // shares with itself alone
    }
    const Status status = batcher_.submit(request);
    if (status.ok()) {
      const bool timed = options_.arrivals == Arrivals::kTrace;
      recorder_.submitted(request, timed ? arrival : report_.virtual_s);
      ++report_.requests;
      return;
    }
    if (status.code() != ErrorCode::kTooLong) status.throw_if_error();
    if (++report_.refused == 1) report_.first_refusal = status.message();
  }

  /// @return False when everything is served.
  bool step() {
    const bool more = take_in();
    Stopwatch watch;
    StepTimes times;
    batcher_.plan({options_.max_tokens_per_step, options_.max_seqs}, plan_).throw_if_error();
    if (plan_.items.empty()) return more;
    copies_.clear();
    batcher_.commit(plan_, copies_).throw_if_error();
    recorder_.committed(plan_, batcher_.stats(), report_.virtual_s);
    look_at_pages();
    const StagedBatch batch = build();
    times.planning += watch.lap();
    count_positions(batch);
    if (reads_ != nullptr) reads_->count(batch, report_.key_reads);
    if (model_ != nullptr) compute(*model_, batch, times);
    watch.lap();
    ended_.clear();
    batcher_.finish(plan_, sample(), {}, ended_).throw_if_error();
    times.planning += watch.lap();
    add(times);
    recorder_.finished(ended_, report_.virtual_s);
    if (report_.pages) report_.pages->finished(ended_);
    if (cache_ && !options_.prefix_cache) {
      for (const std::uint64_t ended : ended_) cache_->erase(ended);
    }
    return true;
  }

  /// @return What the cache is told of the answers.
  std::span<const std::int32_t> sample() {
    tokens_.clear();
    if (!cache_) return tokens_;
    for (const StepItem& item : plan_.items) {
      if (item.samples) {
        tokens_.push_back(answer_token(item.request, item.position + item.num_new_tokens));
      }
    }
    return tokens_;
  }

  void look_at_pages() {
    if (!report_.pages) return;
    report_.pages->committed(plan_, table_, report_.virtual_s);
    if (report_.tree) report_.tree->committed(plan_, table_);
    if (options_.chosen_step < 0) return;
    if (plan_.step != static_cast<std::uint64_t>(options_.chosen_step)) return;
    report_.chosen_map = report_.pages->now(plan_, table_, report_.virtual_s);
  }

  StagedBatch build() {
    const BatchShape shape = builder_.tight_shape(plan_.batch).value();
    const std::size_t bytes = BatchBuilder::staging_size(shape);
    if (staging_.size() < bytes) staging_ = Buffer(2 * bytes);
    return builder_.build(plan_.batch, shape, staging_.bytes()).value();
  }

  void compute(Model& model, const StagedBatch& batch, StepTimes& times) {
    model.layers.transfer(plan_.transfers);
    model.layers.copy_pages(copies_);
    model.layers.run(plan_, batch, times);
    const auto every = static_cast<std::uint64_t>(options_.check_every);
    if (every == 0 || plan_.step % every != 0) return;
    Stopwatch watch;
    model.checker.check(plan_, model.layers.output(plan_.num_tokens));
    report_.checking_s += watch.lap();
  }

  void count_positions(const StagedBatch& batch) {
    const std::int32_t page_size = options_.shape.page_size;
    Positions now;
    for (std::size_t row = 0; row < plan_.batch.size(); ++row) {
      const std::int32_t given_back = table_.num_holes(plan_.batch[row].seq) * page_size;
      const std::int32_t length = batch.kv_len[row] - given_back;
      now.used += length;
      const std::int32_t pages = (length + page_size - 1) / page_size;
      now.paged += static_cast<double>(pages) * page_size;
    }
    now.padded = static_cast<double>(batch.max_kv_len) * batch.num_seqs;
    if (options_.keep_steps) {
      report_.step_pages.push_back({static_cast<float>(now.used), static_cast<float>(now.paged),
                                    static_cast<float>(batcher_.stats().idle_pages)});
    }
    report_.mean.used += now.used;  // sums, until `finish`
    report_.mean.paged += now.paged;
    report_.mean.padded += now.padded;
    if (now.used > report_.peak.used) report_.peak = now;
  }

  void add(const StepTimes& times) {
    const double seconds =
        options_.attention ? times.total()
                           : step_seconds(options_.cost, options_.shape, options_.layers, plan_);
    report_.step_seconds.push_back(seconds);
    report_.virtual_s += seconds;
    report_.times.planning += times.planning;
    report_.times.generating += times.generating;
    report_.times.appending += times.appending;
    report_.times.attention += times.attention;
  }

  void finish() {
    const auto steps = static_cast<double>(std::max<std::size_t>(1, report_.step_seconds.size()));
    report_.mean.used /= steps;
    report_.mean.paged /= steps;
    report_.mean.padded /= steps;
    report_.left_out = static_cast<std::int64_t>(requests_.size() - next_);
    report_.batcher = batcher_.stats();
    if (cache_) report_.cache = cache_->stats();
    report_.lost_pages =
        pool_.num_used() - report_.batcher.idle_pages + host_.num_used() - report_.cache.host_pages;
    report_.broken_invariant = batcher_.check().message();  // table and pool included
    if (model_ != nullptr) {
      report_.kernel = model_->layers.kernel();
      report_.checks = model_->checker.result();
    }
    constexpr std::uint64_t kKeyAndValue = 2;
    report_.position_bytes = kKeyAndValue * static_cast<std::uint64_t>(options_.layers) *
                             static_cast<std::uint64_t>(options_.shape.heads.kv) *
                             static_cast<std::uint64_t>(options_.shape.head_dim) *
                             size_of(options_.shape.cache_dtype());
    report_.tail_waste = tail_waste_of(requests_);
    if (cache_) cache_->set_listener(nullptr);
    report_.recorder = std::move(recorder_);
    static_cast<void>(elapsed());
  }

  ReplayOptions options_;
  std::span<const TraceRequest> requests_;
  std::size_t next_ = 0;  // request to take in
  Work work_;
  PagePool pool_;
  PageTable table_;
  PagePool host_;
  std::optional<PrefixCache> cache_;
  Batcher batcher_;
  BatchBuilder builder_;
  Recorder recorder_;
  std::unique_ptr<Model> model_;        // null without attention
  std::unique_ptr<ReadCounter> reads_;  // null without a prefix cache: nobody shares pages
  StepPlan plan_;
  std::vector<CopyOp> copies_;
  std::vector<std::uint64_t> ended_;
  std::vector<std::int32_t> tokens_;  // of a prompt, or sampled in a step
  Buffer staging_;
  Stopwatch wall_;
  ReplayReport report_;
};

}  // namespace

ReplayReport replay(const ReplayOptions& options, std::span<const TraceRequest> requests,
                    const ReplayProgress& progress) {
  return Engine(options, requests).run(progress);
}

}  // namespace quire::tool
