// SPDX-License-Identifier: Apache-2.0
#include "core/resolve.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/expect.hpp"

namespace quire::core {
namespace {

template <typename... Args>
[[noreturn]] void refuse(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, "[attention] " + fmt::format(text, std::forward<Args>(args)...));
}

void require_at_least(std::string_view field, std::int32_t value, std::int32_t bound) {
  if (value < bound) {
    refuse(ErrorCode::kInvalidArgument, "{}: expected at least {}, got {}", field, bound, value);
  }
}

template <typename Enum>
void require_enumerator(std::string_view field, Enum value, Enum last) {
  const auto number = static_cast<std::int32_t>(value);
  if (number < 0 || number > static_cast<std::int32_t>(last)) {
    refuse(ErrorCode::kInvalidArgument, "{}: expected an enumerator in [0, {}], got {}", field,
           static_cast<std::int32_t>(last), number);
  }
}

void require_limits(const BatchLimits& limits) {
  require_at_least("max_num_seqs", limits.max_num_seqs, 0);
  require_at_least("max_total_q", limits.max_total_q, 0);
  require_at_least("max_kv_len", limits.max_kv_len, 0);
}

void require_heads(const AttentionSpec& spec) {
  constexpr std::int32_t kMostHeads = 65536;
  require_at_least("num_qo_heads", spec.num_qo_heads, 1);
  if (spec.num_qo_heads > kMostHeads) {
    refuse(ErrorCode::kInvalidArgument, "num_qo_heads: expected at most {}, got {}", kMostHeads,
           spec.num_qo_heads);
  }
  require_at_least("num_kv_heads", spec.num_kv_heads, 1);
  if (spec.num_qo_heads % spec.num_kv_heads != 0) {
    refuse(ErrorCode::kInvalidArgument,
           "num_qo_heads: expected a multiple of num_kv_heads ({}), got {}; nearest: {}",
           spec.num_kv_heads, spec.num_qo_heads,
           (spec.num_qo_heads / spec.num_kv_heads + std::int64_t{1}) * spec.num_kv_heads);
  }
  require_at_least("head_dim_qk", spec.head_dim_qk, 1);
  require_at_least("head_dim_vo", spec.head_dim_vo, 0);
}

ProblemShape shape_of(const AttentionSpec& spec) {
  ProblemShape shape;
  shape.num_qo_heads = spec.num_qo_heads;
  shape.num_kv_heads = spec.num_kv_heads;
  shape.group_size = spec.num_qo_heads / spec.num_kv_heads;
  shape.head_dim_qk = spec.head_dim_qk;
  shape.head_dim_vo = spec.head_dim_vo;
  shape.page_size = spec.page_size;
  shape.mask = spec.mask;
  shape.window_left = spec.window_left;
  shape.sm_scale = spec.sm_scale;
  shape.logits_soft_cap = spec.logits_soft_cap;
  shape.q_dtype = spec.q_dtype;
  shape.kv_dtype = spec.kv_dtype;
  shape.o_dtype = spec.o_dtype;
  shape.kv_layout = spec.kv_layout;
  shape.kv_scale = spec.kv_scale;
  return shape;
}

/// Queries of 8 bits are for caches of the same codes, whose products they are made for.
void require_narrow_queries(const AttentionSpec& spec) {
  if (spec.kv_dtype != spec.q_dtype) {
    refuse(ErrorCode::kUnsupported, "kv_dtype: expected {}, as q_dtype is, got {}; nearest: {}",
           to_string(spec.q_dtype), to_string(spec.kv_dtype), to_string(spec.q_dtype));
  }
  if (spec.kv_scale == KvScale::kPerToken) {
    refuse(ErrorCode::kUnsupported,
           "kv_scale: expected none, per tensor or per head for queries of {}, got per token; "
           "nearest: per head",
           to_string(spec.q_dtype));
  }
}

DType resolve_o_dtype(const AttentionSpec& spec) {
  const bool has_codes = spec.q_dtype == DType::kFloat8E4M3;
  if (spec.o_dtype == DType::kNone) return has_codes ? DType::kBFloat16 : spec.q_dtype;
  if (spec.o_dtype == DType::kFloat32) return spec.o_dtype;
  if (has_codes) {
    if (spec.o_dtype == DType::kBFloat16 || spec.o_dtype == DType::kFloat16) return spec.o_dtype;
    refuse(ErrorCode::kInvalidArgument,
           "o_dtype: expected bfloat16, float16 or float32 for queries of {}, got {}",
           to_string(spec.q_dtype), to_string(spec.o_dtype));
  }
  if (spec.o_dtype == spec.q_dtype) return spec.o_dtype;
  refuse(ErrorCode::kInvalidArgument, "o_dtype: expected q_dtype ({}) or float32, got {}",
         to_string(spec.q_dtype), to_string(spec.o_dtype));
}

}  // namespace

AttentionSpec resolve_spec(const AttentionSpec& spec) {
  require_heads(spec);
  require_enumerator("mask", spec.mask, Mask::kFull);
  require_enumerator("kv_layout", spec.kv_layout, KvLayout::kHND);
  require_enumerator("kv_scale", spec.kv_scale, KvScale::kPerToken);
  if (spec.q_dtype == DType::kFloat8E4M3) require_narrow_queries(spec);
  require_at_least("page_size", spec.page_size, 0);
  require_at_least("window_left", spec.window_left, -1);
  if (!std::isfinite(spec.sm_scale)) {
    refuse(ErrorCode::kInvalidArgument, "sm_scale: expected a finite number, got {}",
           spec.sm_scale);
  }
  if (!std::isfinite(spec.logits_soft_cap) || spec.logits_soft_cap < 0.0F) {
    refuse(ErrorCode::kInvalidArgument, "logits_soft_cap: expected 0 (off) or more, got {}",
           spec.logits_soft_cap);
  }
  AttentionSpec resolved = spec;
  if (resolved.head_dim_vo == 0) resolved.head_dim_vo = spec.head_dim_qk;
  resolved.o_dtype = resolve_o_dtype(spec);
  if (resolved.sm_scale == 0.0F) {
    resolved.sm_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim_qk)));
  }
  return resolved;
}

AttentionConfig resolve(Device device, const AttentionSpec& spec, const BatchLimits& limits,
                        const AttentionOptions& options) {
  AttentionConfig config;
  config.device = device;
  config.spec = resolve_spec(spec);
  require_limits(limits);
  config.limits = limits;
  if (device.type == DeviceType::kCuda && !cuda::built()) {
    refuse(ErrorCode::kDeviceError,
           "device: expected cpu, since this build has no CUDA backend (configure with "
           "-DQUIRE_CUDA=ON), got {}",
           describe(device));
  }
  std::string reason;
  config.kernel = find_kernel(device.type, config.spec, options.kernel, reason);
  if (config.kernel == nullptr) throw Error(ErrorCode::kUnsupported, reason);
  config.shape = shape_of(config.spec);
  if (device.type == DeviceType::kCpu) {
    config.executor = options.executor != nullptr ? options.executor : &default_executor();
    constexpr std::int32_t kMostThreads = 65536;
    const std::int32_t threads = config.executor->concurrency();
    if (threads < 1 || threads > kMostThreads) {
      refuse(ErrorCode::kInvalidArgument, "executor: expected a concurrency in [1, {}], got {}",
             kMostThreads, threads);
    }
  }
  return config;
}

}  // namespace quire::core
