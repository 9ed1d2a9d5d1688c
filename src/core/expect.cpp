// SPDX-License-Identifier: Apache-2.0
#include "core/expect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <new>

namespace quire::core {
namespace {

std::string describe(const Expected& expected) {
  std::string text = expected.dtypes.bits == 0 ? "any dtype" : [&] {
    std::string names;
    for (std::int32_t value = 1; value < 32; ++value) {
      const auto dtype = static_cast<DType>(value);
      if (!expected.dtypes.has(dtype)) continue;
      names += (names.empty() ? "" : " or ") + std::string(to_string(dtype));
    }
    return names;
  }();
  text += " [";
  bool first = true;
  for (const Extent& extent : expected.shape) {
    text += fmt::format("{}{}{}", first ? "" : ", ", extent.at_least ? "≥" : "", extent.value);
    first = false;
  }
  return text + "]";
}

std::string describe(const TensorView& tensor) {
  if (!tensor.given()) return "nothing";
  std::string text = std::string(to_string(tensor.dtype)) + " [";
  const std::int32_t rank = std::clamp(tensor.rank, 0, TensorView::kMaxRank);
  for (std::int32_t axis = 0; axis < rank; ++axis) {
    text += fmt::format("{}{}", axis == 0 ? "" : ", ", tensor.size(axis));
  }
  text += "]";
  if (rank != tensor.rank) text += fmt::format(" of rank {}", tensor.rank);
  return text;
}

bool shape_fits(const TensorView& tensor, const Expected& expected) {
  if (tensor.rank != static_cast<std::int32_t>(expected.shape.size())) return false;
  std::int32_t axis = 0;
  for (const Extent& extent : expected.shape) {
    if (tensor.size(axis) < 0 || !extent.takes(tensor.size(axis))) return false;
    ++axis;
  }
  return true;
}

bool is_empty(const TensorView& tensor) {
  for (std::int32_t axis = 0; axis < tensor.rank; ++axis) {
    if (tensor.size(axis) == 0) return true;
  }
  return false;
}

/// True if every element has an address of its own: axes by stride, each steps over the inner ones.
bool is_injective(const TensorView& tensor) {
  struct Axis {
    std::int64_t stride = 0;
    std::int64_t size = 1;
  };
  std::array<Axis, TensorView::kMaxRank> axes{};
  for (std::int32_t axis = 0; axis < tensor.rank; ++axis) {
    if (tensor.size(axis) > 1) {
      axes[static_cast<std::size_t>(axis)] = {tensor.stride(axis), tensor.size(axis)};
    }
  }
  std::sort(axes.begin(), axes.end(),
            [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  constexpr std::int64_t kFarthest = std::numeric_limits<std::int64_t>::max();
  std::int64_t extent = 1;
  for (const Axis& axis : axes) {
    if (axis.size == 1) continue;
    if (axis.stride < extent) return false;
    if (axis.stride > (kFarthest - extent) / (axis.size - 1)) return false;  // no such memory
    extent += axis.stride * (axis.size - 1);
  }
  return true;
}

Status check(const TensorView& tensor, const Expected& expected) {
  const auto fail = [&](const std::string& wanted, const std::string& got) {
    return Status(ErrorCode::kInvalidArgument,
                  fmt::format("[{}] {}: expected {}, got {}", expected.operation, expected.name,
                              wanted, got));
  };
  const bool dtype_fits =
      size_of(tensor.dtype) > 0 && (expected.dtypes.bits == 0 || expected.dtypes.has(tensor.dtype));
  if (!tensor.given() || !dtype_fits || !shape_fits(tensor, expected)) {
    return fail(describe(expected), describe(tensor));
  }
  if (tensor.device != expected.device) {
    return fail("a tensor on " + core::describe(expected.device),
                "one on " + core::describe(tensor.device));
  }
  if (is_empty(tensor)) return {};
  if (tensor.data == nullptr) return fail(describe(tensor) + " in memory", "a null pointer");
  const std::size_t element = size_of(tensor.dtype);
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  if (address % element != 0) {
    return fail(fmt::format("an address aligned to {} bytes", element),
                fmt::format("one that is off by {}", address % element));
  }
  const std::int32_t last = tensor.rank - 1;
  if (expected.dense_last_axis && tensor.size(last) > 1 && tensor.stride(last) != 1) {
    return fail("stride 1 along the last axis", fmt::format("{}", tensor.stride(last)));
  }
  return {};
}

}  // namespace

std::string describe(Device device) {
  if (device == Device::cpu()) return "cpu";
  if (device.type == DeviceType::kCpu) return fmt::format("cpu:{}", device.index);
  return fmt::format("cuda:{}", device.index);
}

Status invalid(std::string_view operation, std::string_view name,
               std::string_view sentence) noexcept {
  try {
    return {ErrorCode::kInvalidArgument, fmt::format("[{}] {}: {}", operation, name, sentence)};
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kInvalidArgument, {}};
  }
}

Status expect(const TensorView& tensor, const Expected& expected) noexcept {
  try {
    return check(tensor, expected);
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, {}};
  }
}

Status expect_writable(const MutableTensorView& tensor, const Expected& expected) noexcept {
  Status status = expect(tensor, expected);
  if (!status.ok() || is_empty(tensor) || is_injective(tensor)) return status;
  return invalid(expected.operation, expected.name,
                 "expected strides that give every element its own address");
}

}  // namespace quire::core
