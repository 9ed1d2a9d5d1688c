// SPDX-License-Identifier: Apache-2.0
#include "replay/layers.hpp"

#include <chrono>
#include <cstring>

namespace quire::tool {
namespace {

std::int64_t nanoseconds_now() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

BatchLimits limits_of(const ReplayOptions& options, std::int32_t max_kv_len) {
  BatchLimits limits;
  limits.max_num_seqs = options.max_seqs;
  limits.max_total_q = options.max_tokens_per_step;
  limits.max_kv_len = max_kv_len;
  return limits;
}

/// Bytes of a token's row.
std::size_t row_bytes(std::int32_t heads, std::int32_t head_dim, DType dtype) {
  return static_cast<std::size_t>(heads) * static_cast<std::size_t>(head_dim) * size_of(dtype);
}

}  // namespace

Stopwatch::Stopwatch() : last_(nanoseconds_now()) {}

double Stopwatch::lap() {
  constexpr double kNanosecond = 1e-9;
  const std::int64_t now = nanoseconds_now();
  const std::int64_t elapsed = now - last_;
  last_ = now;
  return static_cast<double>(elapsed) * kNanosecond;
}

Layers::Layers(const ReplayOptions& options, std::int32_t max_kv_len)
    : options_(options),
      threads_(make_threads(options.threads)),
      call_options_{threads_.get(), {}},
      attention_(Device::cpu(), options.shape.spec(), limits_of(options, max_kv_len),
                 call_options_),
      q_noise_(options.shape.dtype, options.seed),
      kv_noise_(options.shape.cache_dtype(), ~options.seed),
      q_row_bytes_(row_bytes(options.shape.heads.qo, options.shape.head_dim, options.shape.dtype)),
      kv_row_bytes_(
          row_bytes(options.shape.heads.kv, options.shape.head_dim, options.shape.cache_dtype())),
      cache_bytes_each_(static_cast<std::size_t>(options.pages) *
                        static_cast<std::size_t>(options.shape.page_size) * kv_row_bytes_) {
  constexpr int kPoison = 0xff;  // NaN in every format that has one
  for (std::int32_t layer = 0; layer < options.layers; ++layer) {
    caches_.push_back({Buffer(cache_bytes_each_), Buffer(cache_bytes_each_)});
    std::memset(caches_.back().k.data(), kPoison, cache_bytes_each_);
    std::memset(caches_.back().v.data(), kPoison, cache_bytes_each_);
  }
  const auto rows = static_cast<std::size_t>(options.max_tokens_per_step);
  q_ = Buffer(rows * q_row_bytes_);
  k_ = Buffer(rows * kv_row_bytes_);
  v_ = Buffer(rows * kv_row_bytes_);
  o_ = Buffer(rows * q_row_bytes_);
  const WorkspaceSizes sizes = attention_.workspace_sizes();
  schedule_ = Buffer(sizes.schedule);
  scratch_ = Buffer(sizes.scratch);
}

void Layers::copy_pages(std::span<const CopyOp> copies) {
  if (copies.empty()) return;
  for (const Cache& cache : caches_) {
    execute_copies(copies, pages(cache.k), KvLayout::kNHD).throw_if_error();
    execute_copies(copies, pages(cache.v), KvLayout::kNHD).throw_if_error();
  }
}

void Layers::generate(const StepPlan& plan, std::int32_t layer) {
  const auto q_elements = q_row_bytes_ / size_of(q_noise_.dtype());
  const auto kv_elements = kv_row_bytes_ / size_of(kv_noise_.dtype());
  std::size_t row = 0;
  for (const StepItem& item : plan.items) {
    for (std::int64_t position = item.position; position < item.position + item.num_new_tokens;
         ++position, ++row) {
      const auto key = [&](NoiseTensor tensor) {
        return noise_key(item.request, layer, tensor, position);
      };
      q_noise_.fill(q_.data() + row * q_row_bytes_, q_elements, key(NoiseTensor::kQ));
      kv_noise_.fill(k_.data() + row * kv_row_bytes_, kv_elements, key(NoiseTensor::kK));
      kv_noise_.fill(v_.data() + row * kv_row_bytes_, kv_elements, key(NoiseTensor::kV));
    }
  }
}

MutableTensorView Layers::pages(const Buffer& buffer) const {
  const Shape& shape = options_.shape;
  return {buffer.data(),
          shape.cache_dtype(),
          {options_.pages, shape.page_size, shape.heads.kv, shape.head_dim}};
}

AttentionTensors Layers::tensors(const Cache& cache, std::int64_t rows) const {
  const Shape& shape = options_.shape;
  AttentionTensors tensors;
  tensors.q = {q_.data(), shape.dtype, {rows, shape.heads.qo, shape.head_dim}};
  tensors.o = {o_.data(), shape.dtype, {rows, shape.heads.qo, shape.head_dim}};
  tensors.k = pages(cache.k);
  tensors.v = pages(cache.v);
  return tensors;
}

void Layers::run(const StepPlan& plan, const StagedBatch& staged, StepTimes& times) {
  const Shape& shape = options_.shape;
  const std::int64_t rows = plan.num_tokens;
  const Batch batch = staged.dense();
  Stopwatch watch;
  attention_.schedule(batch, schedule_.bytes()).throw_if_error();
  times.attention += watch.lap();
  for (std::int32_t layer = 0; layer <= last_layer(); ++layer) {
    const Cache& cache = caches_[static_cast<std::size_t>(layer)];
    generate(plan, layer);
    times.generating += watch.lap();

    AppendTensors added;
    added.k = {k_.data(), shape.cache_dtype(), {rows, shape.heads.kv, shape.head_dim}};
    added.v = {v_.data(), shape.cache_dtype(), {rows, shape.heads.kv, shape.head_dim}};
    added.k_cache = pages(cache.k);
    added.v_cache = pages(cache.v);
    added.slot_mapping = staged.slots();
    append(Device::cpu(), KvLayout::kNHD, batch, added, {}, call_options_).throw_if_error();
    times.appending += watch.lap();

    attention_.run(batch, tensors(cache, rows), schedule_.bytes(), scratch_.bytes())
        .throw_if_error();
    times.attention += watch.lap();
  }
}

const std::byte* Layers::output(std::int64_t row) const {
  return o_.data() + static_cast<std::size_t>(row) * q_row_bytes_;
}

}  // namespace quire::tool
