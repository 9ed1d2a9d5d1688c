// SPDX-License-Identifier: Apache-2.0
#include "bench/workload.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

#include "common/buffer.hpp"
#include "common/noise.hpp"
#include "common/page_layout.hpp"
#include "common/statistics.hpp"

namespace quire::tool {
namespace {

constexpr double kMicrosecond = 1e-6;
constexpr double kGiga = 1e9;

double seconds_of(const std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

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

/// The tensors of a workload.
class Arrays {
 public:
  Arrays(const Workload& workload, const AttentionSpec& spec, const PageLayout& layout,
         const MeasureOptions& options)
      : spec_(spec), total_q_(layout.total_q()), num_pages_(layout.num_pages()) {
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
    new_k_ = filled(q_noise, new_count, 1);
    new_v_ = filled(q_noise, new_count, 2);
    k_ = filled(kv_noise, cache_count, 3);
    v_ = filled(kv_noise, cache_count, 4);
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
    tensors.k = {new_k_.data(), spec_.q_dtype, {total_q_, spec_.num_kv_heads, spec_.head_dim_qk}};
    tensors.v = {new_v_.data(), spec_.q_dtype, {total_q_, spec_.num_kv_heads, spec_.head_dim_vo}};
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
  Buffer q_, new_k_, new_v_, k_, v_, o_;
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
  const PageLayout layout(workload.qo_len, workload.kv_len, workload.page_size, options.seed,
                          workload.shared);
  const Arrays arrays(workload, spec, layout, options);
  const Batch batch = layout.batch();
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

  const Attention attention(Device::cpu(), spec, layout.limits(), {&executor, {}});
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
