// SPDX-License-Identifier: Apache-2.0
#include "bench/arrays.hpp"

#include <algorithm>

namespace quire::tool {
namespace {

constexpr std::int32_t kBitsPerWord = 32;

/// Elements of so many rows, or none if the workload's operation is another.
std::size_t elements(const Workload& workload, Operation used_by, std::int64_t rows,
                     std::int32_t heads) {
  if (workload.operation != used_by) return 0;
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(heads) *
         static_cast<std::size_t>(workload.head_dim);
}

std::size_t cache_elements(const Workload& workload, const PageLayout& layout) {
  if (workload.operation == Operation::kSchedule) return 0;
  return elements(workload, workload.operation, layout.num_tokens(), workload.heads.kv);
}

}  // namespace

DType query_dtype(const Workload& workload, const MeasureOptions& options) {
  if (options.q_dtype != DType::kNone) return options.q_dtype;
  return workload.q_dtype != DType::kNone ? workload.q_dtype : options.dtype;
}

DType cache_dtype(const Workload& workload, const MeasureOptions& options) {
  if (options.kv_dtype != DType::kNone) return options.kv_dtype;
  return workload.kv_dtype != DType::kNone ? workload.kv_dtype : options.dtype;
}

AttentionSpec spec_of(const Workload& workload, const MeasureOptions& options) {
  Shape shape;
  shape.heads = workload.heads;
  shape.head_dim = workload.head_dim;
  shape.page_size = workload.page_size;
  shape.window = workload.window_left;
  shape.dtype = options.dtype;
  shape.q_dtype = query_dtype(workload, options);
  shape.kv_dtype = cache_dtype(workload, options);
  shape.kv_scale = options.kv_scale;
  AttentionSpec spec = shape.spec();
  spec.share_prefixes = options.share_prefixes;
  spec.batch_invariant = options.batch_invariant;
  spec.mask = workload.mask;
  return spec;
}

NoisyTensor::NoisyTensor(Place& place, const Noise& noise, std::size_t count, std::uint64_t key)
    : block(noise, count, key), memory(place, count * size_of(noise.dtype())) {
  block.fill(place, memory);
}

Arrays::Arrays(const Workload& workload, const MeasureOptions& options, Place& place)
    : device_(place.device()),
      spec_(spec_of(workload, options)),
      qo_len_(workload.qo_len),
      kv_len_(workload.kv_len),
      layout_(qo_len_, kv_len_, workload.page_size, options.seed, workload.shared),
      q_noise_(spec_.q_dtype, options.seed),
      new_noise_(options.dtype, options.seed),
      kv_noise_(spec_.kv_dtype, ~options.seed),
      q_(place, q_noise_,
         elements(workload, Operation::kAttention, layout_.total_q(), workload.heads.qo), 0),
      new_k_(place, new_noise_,
             elements(workload, Operation::kAppend, layout_.total_q(), workload.heads.kv), 1),
      new_v_(place, new_noise_,
             elements(workload, Operation::kAppend, layout_.total_q(), workload.heads.kv), 2),
      k_(place, kv_noise_, cache_elements(workload, layout_), 3),
      v_(place, kv_noise_, cache_elements(workload, layout_), 4),
      scales_(spec_, layout_.num_pages(), kv_noise_.scale()),
      o_(place, q_.memory.size() / size_of(spec_.q_dtype) * size_of(spec_.o_dtype)),
      k_scale_(place, scales_.values().size() * sizeof(float)),
      v_scale_(place, scales_.values().size() * sizeof(float)),
      mirror_(place) {
  for (const DeviceMemory* memory : {&k_scale_, &v_scale_}) {
    memory->upload(std::as_bytes(std::span(scales_.values())));
  }
  Batch batch = options.named_prefixes ? layout_.named_batch() : layout_.batch();
  if (spec_.mask == Mask::kTree) {
    draw_trees();
    batch.tree_mask = {tree_mask_.data(), DType::kUInt32, {layout_.total_q(), tree_words_}};
  }
  batch_ = mirror_.of(batch);
}

void Arrays::draw_trees() {
  for (const std::int32_t queries : qo_len_) {
    tree_words_ = std::max(tree_words_, (queries + kBitsPerWord - 1) / kBitsPerWord);
  }
  for (const std::int32_t queries : qo_len_) {
    for (std::int32_t node = 0; node < queries; ++node) {
      std::vector<std::uint32_t> words(static_cast<std::size_t>(tree_words_));
      for (std::int32_t seen = node; seen >= 0; seen = tree_parent(seen)) {
        words[static_cast<std::size_t>(seen / kBitsPerWord)] |= 1U << (seen % kBitsPerWord);
      }
      tree_mask_.insert(tree_mask_.end(), words.begin(), words.end());
    }
  }
}

const std::uint32_t* Arrays::tree_mask_of(std::size_t seq) const {
  if (tree_mask_.empty()) return nullptr;
  return tree_mask_.data() +
         static_cast<std::size_t>(layout_.first_row(seq)) * static_cast<std::size_t>(tree_words_);
}

MutableTensorView Arrays::cache(const NoisyTensor& noisy) const {
  if (spec_.page_size == kContiguousKv) {
    return {noisy.memory.data(),
            spec_.kv_dtype,
            {layout_.num_tokens(), spec_.num_kv_heads, spec_.head_dim_qk},
            device_};
  }
  return {noisy.memory.data(),
          spec_.kv_dtype,
          {layout_.num_pages(), spec_.page_size, spec_.num_kv_heads, spec_.head_dim_qk},
          device_};
}

TensorView Arrays::rows(const NoisyTensor& noisy, DType dtype, std::int32_t heads) const {
  return {noisy.memory.data(), dtype, {layout_.total_q(), heads, spec_.head_dim_qk}, device_};
}

AttentionTensors Arrays::attention() const {
  AttentionTensors tensors;
  tensors.q = rows(q_, spec_.q_dtype, spec_.num_qo_heads);
  tensors.k = cache(k_);
  tensors.v = cache(v_);
  tensors.o = {o_.data(),
               spec_.o_dtype,
               {layout_.total_q(), spec_.num_qo_heads, spec_.head_dim_vo},
               device_};
  tensors.k_scale = scales_.view(k_scale_.data(), device_);
  tensors.v_scale = scales_.view(v_scale_.data(), device_);
  return tensors;
}

AppendTensors Arrays::append() const {
  AppendTensors tensors;
  tensors.k = rows(new_k_, new_noise_.dtype(), spec_.num_kv_heads);
  tensors.v = rows(new_v_, new_noise_.dtype(), spec_.num_kv_heads);
  tensors.k_cache = cache(k_);
  tensors.v_cache = cache(v_);
  if (spec_.kv_scale == KvScale::kPerToken) {
    tensors.k_token_scale = scales_.view(k_scale_.data(), device_);
    tensors.v_token_scale = scales_.view(v_scale_.data(), device_);
  } else {
    tensors.k_scale = scales_.view(k_scale_.data(), device_);
    tensors.v_scale = scales_.view(v_scale_.data(), device_);
  }
  return tensors;
}

}  // namespace quire::tool
