// SPDX-License-Identifier: Apache-2.0
#include "bench/workload.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "common/buffer.hpp"
#include "common/noise.hpp"
#include "common/random.hpp"
#include "common/statistics.hpp"

namespace quire::tool {
namespace {

constexpr double kMicrosecond = 1e-6;
constexpr double kGiga = 1e9;

double seconds_of(const std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::int32_t divide_up(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

AttentionSpec spec_of(const Workload& workload, const MeasureOptions& options) {
  Shape shape;
  shape.heads = workload.heads;
  shape.head_dim = workload.head_dim;
  shape.page_size = workload.page_size;
  shape.window = workload.window_left;
  shape.dtype = options.dtype;
  shape.kv_dtype = options.kv_dtype;
  AttentionSpec spec = shape.spec();
  spec.mask = workload.causal ? Mask::kCausal : Mask::kNone;
  return spec;
}

/// Page ids of all requests, shuffled; shared prefixes are the same pages.
class Tables {
 public:
  Tables(const Workload& workload, std::uint64_t seed) : page_size_(workload.page_size) {
    for (std::size_t i = 0; i < workload.kv_len.size(); ++i) {
      qo_indptr_.push_back(qo_indptr_.back() + workload.qo_len[i]);
      width_ = std::max(width_, divide_up(workload.kv_len[i], page_size_));
    }
    kv_len_ = workload.kv_len;
    table_.assign(kv_len_.size() * static_cast<std::size_t>(width_), kUnset);
    for (const SharedPrefix& group : workload.shared) share(group);
    for (std::size_t seq = 0; seq < kv_len_.size(); ++seq) {
      for (std::int32_t i = 0; i < divide_up(kv_len_[seq], page_size_); ++i) {
        if (entry(seq, i) == kUnset) entry(seq, i) = num_pages_++;
      }
    }
    shuffle(seed);
  }

  [[nodiscard]] std::int32_t num_pages() const { return num_pages_; }
  [[nodiscard]] std::int32_t num_seqs() const { return static_cast<std::int32_t>(kv_len_.size()); }
  [[nodiscard]] std::int32_t total_q() const { return qo_indptr_.back(); }
  [[nodiscard]] Batch batch() const {
    Batch batch;
    batch.qo_indptr = {qo_indptr_.data(), DType::kInt32, {num_seqs() + 1}};
    batch.kv_len = {kv_len_.data(), DType::kInt32, {num_seqs()}};
    batch.page_table = {table_.data(), DType::kInt32, {num_seqs(), width_}};
    return batch;
  }

 private:
  static constexpr std::int32_t kUnset = -1;

  std::int32_t& entry(std::size_t seq, std::int32_t index) {
    return table_[seq * static_cast<std::size_t>(width_) + static_cast<std::size_t>(index)];
  }

  void share(const SharedPrefix& group) {
    for (std::int32_t i = 0; i < group.tokens / page_size_; ++i) {
      std::int32_t& page = entry(static_cast<std::size_t>(group.first), i);
      // A prefix within a longer group's: what that one shares stays.
      if (page == kUnset) page = num_pages_++;
      for (std::int32_t seq = group.first; seq < group.last_exclusive; ++seq) {
        entry(static_cast<std::size_t>(seq), i) = page;
      }
    }
  }

  void shuffle(std::uint64_t seed) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_pages_));
    std::iota(ids.begin(), ids.end(), 0);
    Random random(seed);
    for (std::size_t i = ids.size(); i > 1; --i) {
      std::swap(ids[i - 1],
                ids[static_cast<std::size_t>(random.between(0, static_cast<std::int32_t>(i) - 1))]);
    }
    for (std::int32_t& page : table_) {
      if (page != kUnset) page = ids[static_cast<std::size_t>(page)];
    }
  }

  std::int32_t page_size_;
  std::int32_t width_ = 1;
  std::int32_t num_pages_ = 0;
  std::vector<std::int32_t> qo_indptr_ = {0};
  std::vector<std::int32_t> kv_len_;
  std::vector<std::int32_t> table_;
};

/// The tensors of a workload.
class Arrays {
 public:
  Arrays(const Workload& workload, const AttentionSpec& spec, const Tables& tables,
         const MeasureOptions& options)
      : spec_(spec), total_q_(tables.total_q()), num_pages_(tables.num_pages()) {
    const Noise q_noise(spec.q_dtype, options.seed);
    const Noise kv_noise(spec.kv_dtype, ~options.seed);
    scale_ = kv_noise.scale();
    const auto dim = static_cast<std::size_t>(workload.head_dim);
    const auto rows = static_cast<std::size_t>(total_q_);
    const std::size_t q_count = rows * static_cast<std::size_t>(workload.heads.qo) * dim;
    const std::size_t new_count = rows * static_cast<std::size_t>(workload.heads.kv) * dim;
    const std::size_t cache_count = static_cast<std::size_t>(num_pages_) *
                                    static_cast<std::size_t>(workload.page_size) *
                                    static_cast<std::size_t>(workload.heads.kv) * dim;
    q_ = filled(q_noise, q_count, 0);
    new_ = filled(q_noise, new_count, 1);
    k_ = filled(kv_noise, cache_count, 2);
    v_ = filled(kv_noise, cache_count, 3);
    o_ = Buffer(q_count * size_of(spec.o_dtype));
  }

  [[nodiscard]] AttentionTensors attention() const {
    AttentionTensors tensors;
    tensors.q = {q_.data(), spec_.q_dtype, {total_q_, spec_.num_qo_heads, spec_.head_dim_qk}};
    tensors.o = {o_.data(), spec_.o_dtype, {total_q_, spec_.num_qo_heads, spec_.head_dim_vo}};
    tensors.k = cache(k_);
    tensors.v = cache(v_);
    if (spec_.kv_scale != KvScale::kNone) {
      tensors.k_scale = {&scale_, DType::kFloat32, {1}};
      tensors.v_scale = tensors.k_scale;
    }
    return tensors;
  }

  [[nodiscard]] AppendTensors append() const {
    AppendTensors tensors;
    tensors.k = {new_.data(), spec_.q_dtype, {total_q_, spec_.num_kv_heads, spec_.head_dim_qk}};
    tensors.v = tensors.k;
    tensors.k_cache = cache(k_);
    tensors.v_cache = cache(v_);
    if (spec_.kv_scale != KvScale::kNone) {
      tensors.k_scale = {&scale_, DType::kFloat32, {1}};
      tensors.v_scale = tensors.k_scale;
    }
    return tensors;
  }

 private:
  static Buffer filled(const Noise& noise, std::size_t count, std::uint64_t key) {
    Buffer buffer(count * size_of(noise.dtype()));
    noise.fill(buffer.data(), count, key);
    return buffer;
  }
  [[nodiscard]] MutableTensorView cache(const Buffer& buffer) const {
    return {buffer.data(),
            spec_.kv_dtype,
            {num_pages_, spec_.page_size, spec_.num_kv_heads, spec_.head_dim_qk}};
  }

  AttentionSpec spec_;
  std::int32_t total_q_;
  std::int32_t num_pages_;
  float scale_ = 1;
  Buffer q_, new_, k_, v_, o_;
};

/// Repeats `body`, with cold caches, until there is enough to judge: a slow workload is repeated
/// less often than a fast one. @return Seconds of each, at least one.
template <typename Body>
std::vector<double> repeat(double min_seconds, Stream& stream, Body body) {
  constexpr std::size_t kFewest = 5;
  constexpr std::size_t kMost = 200;
  constexpr double kMostTimesLonger = 10;
  std::vector<double> samples;
  double spent = 0;
  body();  // touches memory for the first time
  for (bool enough = false; !enough;) {
    stream.read();
    const auto start = std::chrono::steady_clock::now();
    body();
    samples.push_back(seconds_of(std::chrono::steady_clock::now() - start));
    spent += samples.back();
    enough = (spent >= min_seconds && samples.size() >= kFewest) ||
             spent >= kMostTimesLonger * min_seconds || samples.size() >= kMost;
  }
  return samples;
}

BatchLimits limits_of(const Workload& workload, const Tables& tables) {
  BatchLimits limits;
  limits.max_num_seqs = tables.num_seqs();
  limits.max_total_q = tables.total_q();
  limits.max_kv_len = *std::max_element(workload.kv_len.begin(), workload.kv_len.end());
  return limits;
}

void take_times(Measurement& measurement, const std::vector<double>& samples) {
  constexpr double kLow = 0.05;
  constexpr double kHigh = 0.95;
  measurement.repetitions = static_cast<std::int64_t>(samples.size());
  measurement.us_median = quantile(samples, 0.5) / kMicrosecond;
  measurement.us_p5 = quantile(samples, kLow) / kMicrosecond;
  measurement.us_p95 = quantile(samples, kHigh) / kMicrosecond;
}

}  // namespace

double Measurement::gb_per_s() const { return bytes / (us_median * kMicrosecond) / kGiga; }
double Measurement::gflop_per_s() const { return flop / (us_median * kMicrosecond) / kGiga; }

bool Measurement::bound_by_reading(const Ceilings& ceilings) const {
  return bytes / ceilings.read_gb_per_s >= flop / ceilings.fma_gflop_per_s;
}

double Measurement::percent_of(const Ceilings& ceilings) const {
  constexpr double kPercent = 100;
  return kPercent *
         std::max(gb_per_s() / ceilings.read_gb_per_s, gflop_per_s() / ceilings.fma_gflop_per_s);
}

Measurement measure(const Workload& workload, const MeasureOptions& options, Executor& executor,
                    Stream& stream) {
  const AttentionSpec spec = spec_of(workload, options);
  const Tables tables(workload, options.seed);
  const Arrays arrays(workload, spec, tables, options);
  const Batch batch = tables.batch();
  Measurement measurement;
  measurement.bytes = workload.bytes(options.dtype, options.kv_dtype);
  measurement.flop = workload.flop();
  if (workload.operation == Operation::kAppend) {
    measurement.kernel = "append";
    take_times(measurement, repeat(options.min_seconds, stream, [&] {
                 append(Device::cpu(), spec.kv_layout, batch, arrays.append(), {}, {&executor, {}})
                     .throw_if_error();
               }));
    return measurement;
  }

  const Attention attention(Device::cpu(), spec, limits_of(workload, tables), {&executor, {}});
  const WorkspaceSizes sizes = attention.workspace_sizes();
  const Buffer schedule(sizes.schedule);
  const Buffer scratch(sizes.scratch);
  constexpr double kScheduleSeconds = 0.01;
  const auto schedule_once = [&] { attention.schedule(batch, schedule.bytes()).throw_if_error(); };
  measurement.us_schedule =
      quantile(repeat(kScheduleSeconds, stream, schedule_once), 0.5) / kMicrosecond;
  measurement.kernel = attention.kernel();
  const AttentionTensors tensors = arrays.attention();
  take_times(measurement, repeat(options.min_seconds, stream, [&] {
               attention.run(batch, tensors, schedule.bytes(), scratch.bytes()).throw_if_error();
             }));
  return measurement;
}

}  // namespace quire::tool
