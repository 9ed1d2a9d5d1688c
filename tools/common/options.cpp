// SPDX-License-Identifier: Apache-2.0
#include "common/options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <stdexcept>
#include <system_error>

#include "common/format.hpp"

namespace quire::tool {
namespace {

struct DTypeName {
  std::string_view alias;
  DType dtype;
};
constexpr std::array kDTypes = {
    DTypeName{"fp32", DType::kFloat32},       DTypeName{"fp16", DType::kFloat16},
    DTypeName{"bf16", DType::kBFloat16},      DTypeName{"int8", DType::kInt8},
    DTypeName{"fp8", DType::kFloat8E4M3},     DTypeName{"fp8_e4m3", DType::kFloat8E4M3},
    DTypeName{"fp8_e5m2", DType::kFloat8E5M2}};

struct MaskName {
  std::string_view name;
  Mask mask;
};
constexpr std::array kMasks = {MaskName{"causal", Mask::kCausal}, MaskName{"none", Mask::kNone},
                               MaskName{"tree", Mask::kTree}, MaskName{"full", Mask::kFull}};

struct ScaleName {
  std::string_view name;
  KvScale scale;
};
constexpr std::array kScales = {
    ScaleName{"none", KvScale::kNone}, ScaleName{"tensor", KvScale::kPerTensor},
    ScaleName{"head", KvScale::kPerHead}, ScaleName{"token", KvScale::kPerToken}};

[[noreturn]] void refuse(const std::string& expected, std::string_view got) {
  throw std::invalid_argument(fmt::format("expected {}, got {}", expected, in_quotes(got)));
}

/// An option whose text goes through a parser that says what it expected.
template <typename T, typename Parse>
CLI::Option* add_parsed(CLI::App& app, const std::string& name, T& value, const std::string& help,
                        const std::string& type, const std::string& initial, Parse parse) {
  const std::string plain = name.substr(name.rfind("--"));
  CLI::Option* option = app.add_option_function<std::string>(
      name,
      [&value, plain, parse](const std::string& text) {
        try {
          value = parse(text);
        } catch (const std::invalid_argument& error) {
          throw CLI::ValidationError(plain, error.what());
        }
      },
      help);
  option->type_name(type);
  if (!initial.empty()) option->default_str(initial);
  return option;
}

}  // namespace

std::int64_t parse_whole(std::string_view text, std::int64_t low, std::int64_t high) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high) {
    refuse(fmt::format("a whole number from {} to {}", low, high), text);
  }
  return value;
}

double parse_real(std::string_view text, double low, double high) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() ||
      !(value >= low && value <= high)) {
    refuse(fmt::format("a number from {} to {}", low, high), text);
  }
  return value;
}

Heads parse_heads(std::string_view text) {
  const std::size_t colon = text.find(':');
  try {
    Heads heads;
    heads.qo = static_cast<std::int32_t>(parse_whole(text.substr(0, colon), 1, kMostHeads));
    heads.kv = colon == std::string_view::npos
                   ? heads.qo
                   : static_cast<std::int32_t>(parse_whole(text.substr(colon + 1), 1, kMostHeads));
    if (heads.qo % heads.kv == 0) return heads;
  } catch (const std::invalid_argument&) {
    // The text as a whole is what was wrong.
  }
  refuse("QUERY:KV heads, the first a multiple of the second, such as 32:8", text);
}

DType parse_dtype(std::string_view text) {
  std::string known;
  for (const DTypeName& entry : kDTypes) {
    if (text == entry.alias || text == to_string(entry.dtype)) return entry.dtype;
    known += (known.empty() ? "" : ", ") + std::string(entry.alias);
  }
  refuse("one of " + known, text);
}

Device parse_device(std::string_view text) {
  constexpr std::string_view kCuda = "cuda";
  constexpr std::int64_t kMostDevices = 1024;
  if (text == "cpu") return Device::cpu();
  if (text == kCuda) return Device::cuda();
  try {
    if (text.substr(0, kCuda.size() + 1) == "cuda:") {
      return Device::cuda(static_cast<std::int32_t>(
          parse_whole(text.substr(kCuda.size() + 1), 0, kMostDevices - 1)));
    }
  } catch (const std::invalid_argument&) {
    // The text as a whole is what was wrong.
  }
  refuse("cpu, cuda or cuda:N", text);
}

Mask parse_mask(std::string_view text) {
  for (const MaskName& entry : kMasks) {
    if (text == entry.name) return entry.mask;
  }
  refuse("one of causal, none, tree, full", text);
}

KvScale parse_kv_scale(std::string_view text) {
  for (const ScaleName& entry : kScales) {
    if (text == entry.name) return entry.scale;
  }
  refuse("one of none, tensor, head, token", text);
}

std::string_view kv_scale_name(KvScale scale) {
  for (const ScaleName& entry : kScales) {
    if (scale == entry.scale) return entry.name;
  }
  return "unknown";
}

std::string_view mask_name(Mask mask) {
  for (const MaskName& entry : kMasks) {
    if (mask == entry.mask) return entry.name;
  }
  return "unknown";
}

std::string device_name(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

CLI::Option* add_heads(CLI::App& app, Heads& value) {
  return add_parsed(app, "--heads", value, "Query and key/value heads", "QUERY:KV",
                    fmt::format("{}:{}", value.qo, value.kv),
                    [](const std::string& text) { return parse_heads(text); });
}

CLI::Option* add_dtype(CLI::App& app, const std::string& name, DType& value,
                       const std::string& help) {
  const std::string initial = value == DType::kNone ? "" : std::string(to_string(value));
  return add_parsed(app, name, value, help, "DTYPE", initial,
                    [](const std::string& text) { return parse_dtype(text); });
}

CLI::Option* add_kv_scale(CLI::App& app, std::optional<KvScale>& value) {
  return add_parsed(app, "--kv-scale", value,
                    "Scales of the cache: none, or one per tensor, head or token (default: tensor "
                    "for int8, else none)",
                    "SCALE", "", [](const std::string& text) { return parse_kv_scale(text); });
}

CLI::Option* add_device(CLI::App& app, Device& value) {
  return add_parsed(app, "--device", value, "Where to compute: cpu, cuda or cuda:N", "DEVICE",
                    "cpu", [](const std::string& text) { return parse_device(text); });
}

CLI::Option* add_mask(CLI::App& app, Mask& value) {
  return add_parsed(app, "--mask", value, "Which keys a query sees: causal, none, tree or full",
                    "MASK", std::string(mask_name(value)),
                    [](const std::string& text) { return parse_mask(text); });
}

CLI::Option* add_whole(CLI::App& app, const std::string& name, std::int32_t& value,
                       std::int64_t low, std::int64_t high, const std::string& help) {
  return add_parsed(app, name, value, help, "N", fmt::format("{}", value),
                    [low, high](const std::string& text) {
                      return static_cast<std::int32_t>(parse_whole(text, low, high));
                    });
}

CLI::Option* add_seed(CLI::App& app, std::uint64_t& value) {
  return add_parsed(app, "--seed", value, "Seed of everything random", "N",
                    fmt::format("{}", value), [](const std::string& text) {
                      constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
                      return static_cast<std::uint64_t>(parse_whole(text, 0, kMost));
                    });
}

CLI::Option* add_real(CLI::App& app, const std::string& name, double& value, double low,
                      double high, const std::string& help) {
  return add_parsed(app, name, value, help, "X", fmt::format("{:g}", value),
                    [low, high](const std::string& text) { return parse_real(text, low, high); });
}

CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help) {
  return add_parsed(app, name, value, help, fmt::format("{}", fmt::join(choices, "|")), value,
                    [choices](const std::string& text) {
                      if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
                        refuse(fmt::format("one of {}", fmt::join(choices, ", ")), text);
                      }
                      return text;
                    });
}

CLI::Option* add_page_kind(CLI::App& app, PageKind& value) {
  return app.add_flag_callback(
      "--no-huge-pages", [&value] { value = PageKind::kOrdinary; },
      "On the CPU: keep the cache on the system's ordinary pages");
}

CLI::Option* add_json(CLI::App& app, bool& value, const std::string& help) {
  return app.add_flag("--json", value, help);
}

void add_shape(CLI::App& app, Shape& shape) {
  constexpr double kLargestCap = 1e6;
  constexpr std::int64_t kLongestWindow = std::numeric_limits<std::int32_t>::max();
  add_heads(app, shape.heads);
  add_whole(app, "--head-dim", shape.head_dim, 1, kLongestHeadDim, "Elements of a head");
  add_dtype(app, "--dtype", shape.dtype, "Of queries and outputs: fp32, fp16 or bf16");
  add_dtype(app, "--q-dtype", shape.q_dtype,
            "Of queries, float8_e4m3 with a cache of the same (default: as --dtype)");
  add_dtype(app, "--kv-dtype", shape.kv_dtype, "Of the cache (default: as --dtype)");
  add_kv_scale(app, shape.kv_scale);
  add_whole(app, "--page-size", shape.page_size, 1, kLargestPage, "Tokens per page");
  add_whole(app, "--window", shape.window, -1, kLongestWindow,
            "Keys to the left that a query sees; -1 is all");
  add_real(app, "--soft-cap", shape.soft_cap, 0, kLargestCap, "Soft cap of the logits; 0 is off");
}

}  // namespace quire::tool
