// SPDX-License-Identifier: Apache-2.0
#include "replay/layers.hpp"

#include <chrono>

#include "common/numbers.hpp"

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

/// Of new keys and values: an 8-bit cache gets them in the dtype of outputs.
DType new_dtype(const Shape& shape) {
  return is_float(shape.cache_dtype()) ? shape.cache_dtype() : shape.dtype;
}

/// Scales that lead four deviations of the noise to the cache; none where they are computed.
std::vector<float> scales_of(const AttentionSpec& spec) {
  constexpr float kInt8 = 1.0F / 32;
  constexpr float kFloat8 = 1.0F / 16;
  if (spec.kv_scale == KvScale::kNone || spec.kv_scale == KvScale::kPerToken) return {};
  const bool per_head = spec.kv_scale == KvScale::kPerHead;
  std::vector<float> scales(per_head ? static_cast<std::size_t>(spec.num_kv_heads) : 1,
                            spec.kv_dtype == DType::kInt8 ? kInt8 : kFloat8);
  for (std::size_t head = 1; head < scales.size(); head += 2) scales[head] *= 2;
  return scales;
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
      place_(open_place(
          options.device,
          {options.pages_of_memory, threads_ != nullptr ? threads_.get() : &default_executor()})),
      call_options_{threads_.get(), {}},
      attention_(options.device, options.shape.spec(), limits_of(options, max_kv_len),
                 call_options_),
      q_noise_(options.shape.query_dtype(), options.seed),
      kv_noise_(new_dtype(options.shape), ~options.seed),
      q_row_bytes_(
          row_bytes(options.shape.heads.qo, options.shape.head_dim, options.shape.query_dtype())),
      o_row_bytes_(row_bytes(options.shape.heads.qo, options.shape.head_dim, options.shape.dtype)),
      kv_row_bytes_(
          row_bytes(options.shape.heads.kv, options.shape.head_dim, options.shape.cache_dtype())),
      new_row_bytes_(
          row_bytes(options.shape.heads.kv, options.shape.head_dim, new_dtype(options.shape))),
      given_scales_(scales_of(attention_.spec())),
      cache_bytes_each_(static_cast<std::size_t>(options.pages) *
                        static_cast<std::size_t>(options.shape.page_size) * kv_row_bytes_) {
  const std::size_t scale_bytes = attention_.spec().kv_scale == KvScale::kPerToken
                                      ? cache_bytes_each_ / kv_row_bytes_ *
                                            static_cast<std::size_t>(options.shape.heads.kv) *
                                            sizeof(float)
                                      : 0;
  for (std::int32_t layer = 0; layer < options.layers; ++layer) {
    caches_.push_back({poisoned(cache_bytes_each_), poisoned(cache_bytes_each_),
                       poisoned(scale_bytes), poisoned(scale_bytes)});
  }
  if (options.host_pages > 0) {
    const auto pages = static_cast<std::size_t>(options.pages);
    const auto host_pages = static_cast<std::size_t>(options.host_pages);
    for (const Cache& cache : caches_) {
      HostCache& on_host = host_caches_.emplace_back();
      for (std::size_t part = 0; part < on_host.size(); ++part) {
        const std::size_t page_bytes = parts_of(cache)[part]->size() / pages;
        if (page_bytes > 0) on_host[part] = Buffer(page_bytes * host_pages);
      }
    }
  }
  scales_ = DeviceMemory(*place_, given_scales_.size() * sizeof(float));
  scales_.upload(std::as_bytes(std::span(given_scales_)));
  const auto rows = static_cast<std::size_t>(options.max_tokens_per_step);
  q_ = SharedBytes(*place_, rows * q_row_bytes_);
  k_ = SharedBytes(*place_, rows * new_row_bytes_);
  v_ = SharedBytes(*place_, rows * new_row_bytes_);
  o_ = SharedBytes(*place_, rows * o_row_bytes_);
  const WorkspaceSizes sizes = attention_.workspace_sizes();
  schedule_ = DeviceMemory(*place_, sizes.schedule);
  scratch_ = DeviceMemory(*place_, sizes.scratch);
}

DeviceMemory Layers::poisoned(std::size_t bytes) const {
  constexpr int kPoison = 0xff;  // NaN in every format that has one
  DeviceMemory memory(*place_, bytes);
  if (bytes > 0) memory.fill(kPoison);
  return memory;
}

void Layers::copy_pages(std::span<const CopyOp> copies) {
  for (const Cache& cache : caches_) {
    copy_pages(copies, cache.k);
    copy_pages(copies, cache.v);
    if (attention_.spec().kv_scale != KvScale::kPerToken) continue;
    copy_scales(copies, cache.k_scale);
    copy_scales(copies, cache.v_scale);
  }
}

/// Whole pages, one by one.
void Layers::transfer(const TransferPlan& plan) {
  for (std::size_t layer = 0; layer < host_caches_.size(); ++layer) {
    for (std::size_t part = 0; part < host_caches_[layer].size(); ++part) {
      const DeviceMemory& memory = *parts_of(caches_[layer])[part];
      const std::size_t bytes = memory.size() / static_cast<std::size_t>(options_.pages);
      if (bytes == 0) continue;
      const auto on_device = [&](PageId page) {
        return memory.data() + static_cast<std::size_t>(page) * bytes;
      };
      const auto on_host = [&](PageId page) {
        return host_caches_[layer][part].data() + static_cast<std::size_t>(page) * bytes;
      };
      for (const CopyOp& op : plan.offloads) {
        place_->copy(on_host(op.dst), on_device(op.src), bytes);
      }
      for (const CopyOp& op : plan.fetches) {
        place_->copy(on_device(op.dst), on_host(op.src), bytes);
      }
    }
  }
}

void Layers::copy_pages(std::span<const CopyOp> copies, const DeviceMemory& cache) const {
  const std::size_t page_bytes = static_cast<std::size_t>(options_.shape.page_size) * kv_row_bytes_;
  for (const CopyOp& copy : copies) {
    const auto at = [&](PageId page, std::int32_t begin) {
      return cache.data() + static_cast<std::size_t>(page) * page_bytes +
             static_cast<std::size_t>(begin) * kv_row_bytes_;
    };
    place_->copy(at(copy.dst, copy.dst_begin), at(copy.src, copy.src_begin),
                 static_cast<std::size_t>(copy.tokens) * kv_row_bytes_);
  }
}

/// Those of the whole page: a token's lie one head apart.
void Layers::copy_scales(std::span<const CopyOp> copies, const DeviceMemory& scales) const {
  const std::size_t bytes = static_cast<std::size_t>(options_.shape.page_size) *
                            static_cast<std::size_t>(options_.shape.heads.kv) * sizeof(float);
  for (const CopyOp& copy : copies) {
    place_->copy(scales.data() + static_cast<std::size_t>(copy.dst) * bytes,
                 scales.data() + static_cast<std::size_t>(copy.src) * bytes, bytes);
  }
}

void Layers::generate(const StepPlan& plan, std::int32_t layer) {
  const auto q_elements = q_row_bytes_ / size_of(q_noise_.dtype());
  const auto kv_elements = new_row_bytes_ / size_of(kv_noise_.dtype());
  std::size_t row = 0;
  for (const StepItem& item : plan.items) {
    for (std::int64_t position = item.position; position < item.position + item.num_new_tokens;
         ++position, ++row) {
      const auto key = [&](NoiseTensor tensor) {
        return noise_key(item.request, layer, tensor, position);
      };
      q_noise_.fill(q_.host() + row * q_row_bytes_, q_elements, key(NoiseTensor::kQ));
      kv_noise_.fill(k_.host() + row * new_row_bytes_, kv_elements, key(NoiseTensor::kK));
      kv_noise_.fill(v_.host() + row * new_row_bytes_, kv_elements, key(NoiseTensor::kV));
    }
  }
  q_.push(row * q_row_bytes_);
  k_.push(row * new_row_bytes_);
  v_.push(row * new_row_bytes_);
}

const std::byte* Layers::show(const StagedBatch& staged) {
  if (options_.device.type == DeviceType::kCpu) return staged.bytes.data();
  if (block_.size() < staged.bytes.size()) {
    block_ = DeviceMemory(*place_, 2 * staged.bytes.size());
  }
  block_.upload(staged.bytes);
  return block_.data();
}

double Layers::lap(Stopwatch& watch) const {
  place_->synchronize();
  return watch.lap();
}

MutableTensorView Layers::pages(const DeviceMemory& cache) const {
  const Shape& shape = options_.shape;
  return {cache.data(),
          shape.cache_dtype(),
          {options_.pages, shape.page_size, shape.heads.kv, shape.head_dim},
          options_.device};
}

MutableTensorView Layers::rows_of(const SharedBytes& bytes, std::int64_t rows, std::int32_t heads,
                                  DType dtype) const {
  return {bytes.device(), dtype, {rows, heads, options_.shape.head_dim}, options_.device};
}

AttentionTensors Layers::tensors(const Cache& cache, std::int64_t rows) const {
  const Shape& shape = options_.shape;
  AttentionTensors tensors;
  tensors.q = rows_of(q_, rows, shape.heads.qo, shape.query_dtype());
  tensors.o = rows_of(o_, rows, shape.heads.qo, shape.dtype);
  tensors.k = pages(cache.k);
  tensors.v = pages(cache.v);
  tensors.k_scale = scales(cache.k_scale);
  tensors.v_scale = scales(cache.v_scale);
  return tensors;
}

MutableTensorView Layers::scales(const DeviceMemory& of_tokens) const {
  const AttentionSpec& spec = attention_.spec();
  if (spec.kv_scale == KvScale::kPerToken) {
    return {of_tokens.data(),
            DType::kFloat32,
            {options_.pages, spec.num_kv_heads, spec.page_size},
            options_.device};
  }
  if (given_scales_.empty()) return {};
  const auto count = static_cast<std::int64_t>(given_scales_.size());
  return {scales_.data(), DType::kFloat32, {count}, options_.device};
}

void Layers::append_new_tokens(const Cache& cache, std::int64_t rows, const Batch& batch,
                               const TensorView& slots) const {
  const Shape& shape = options_.shape;
  AppendTensors added;
  added.k = rows_of(k_, rows, shape.heads.kv, kv_noise_.dtype());
  added.v = rows_of(v_, rows, shape.heads.kv, kv_noise_.dtype());
  added.k_cache = pages(cache.k);
  added.v_cache = pages(cache.v);
  added.slot_mapping = slots;
  if (attention_.spec().kv_scale == KvScale::kPerToken) {
    added.k_token_scale = scales(cache.k_scale);
    added.v_token_scale = scales(cache.v_scale);
  } else {
    added.k_scale = scales(cache.k_scale);
    added.v_scale = scales(cache.v_scale);
  }
  append(options_.device, KvLayout::kNHD, batch, added, {place_->stream()}, call_options_)
      .throw_if_error();
}

void Layers::run(const StepPlan& plan, const StagedBatch& staged, StepTimes& times) {
  const ProfiledRange range(*place_, "replay step", static_cast<std::int64_t>(plan.step));
  const std::int64_t rows = plan.num_tokens;
  const CallOptions call{place_->stream()};
  Stopwatch watch;
  const std::byte* block = show(staged);
  const Batch batch = staged.dense(block, options_.device);
  times.generating += lap(watch);
  attention_.schedule(batch, schedule_.bytes(), call).throw_if_error();
  times.attention += lap(watch);
  for (const Cache& cache : caches_) {
    generate(plan, static_cast<std::int32_t>(&cache - caches_.data()));
    times.generating += lap(watch);
    append_new_tokens(cache, rows, batch, staged.slots(block, options_.device));
    times.appending += lap(watch);
    attention_.run(batch, tensors(cache, rows), schedule_.bytes(), scratch_.bytes(), call)
        .throw_if_error();
    times.attention += lap(watch);
  }
}

const std::byte* Layers::output(std::int64_t num_rows) const {
  o_.pull(static_cast<std::size_t>(num_rows) * o_row_bytes_);
  return o_.host();
}

}  // namespace quire::tool
