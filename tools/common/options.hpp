// SPDX-License-Identifier: Apache-2.0
/// @file
/// Options that several subcommands share, and how they are read.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/buffer.hpp"
#include "common/shape.hpp"
#include "quire/attention.hpp"

namespace quire::tool {

// Each of these throws std::invalid_argument with "expected …, got …".
Heads parse_heads(std::string_view text);       ///< "32:8", or "32" for as many kv heads.
DType parse_dtype(std::string_view text);       ///< "bfloat16" or "bf16", and so on.
Device parse_device(std::string_view text);     ///< "cpu", "cuda" or "cuda:1".
Mask parse_mask(std::string_view text);         ///< "causal", "none", "tree" or "full".
KvScale parse_kv_scale(std::string_view text);  ///< "none", "tensor", "head" or "token".
std::int64_t parse_whole(std::string_view text, std::int64_t low, std::int64_t high);
double parse_real(std::string_view text, double low, double high);

/// @return The name that `parse_mask` reads.
std::string_view mask_name(Mask mask);
/// @return The name that `parse_kv_scale` reads.
std::string_view kv_scale_name(KvScale scale);
/// @return The name that `parse_device` reads, with its index.
std::string device_name(Device device);

CLI::Option* add_heads(CLI::App& app, Heads& value);
CLI::Option* add_dtype(CLI::App& app, const std::string& name, DType& value,
                       const std::string& help);
/// `--kv-scale`.
CLI::Option* add_kv_scale(CLI::App& app, std::optional<KvScale>& value);
CLI::Option* add_device(CLI::App& app, Device& value);
CLI::Option* add_mask(CLI::App& app, Mask& value);
CLI::Option* add_whole(CLI::App& app, const std::string& name, std::int32_t& value,
                       std::int64_t low, std::int64_t high, const std::string& help);
CLI::Option* add_seed(CLI::App& app, std::uint64_t& value);
CLI::Option* add_real(CLI::App& app, const std::string& name, double& value, double low,
                      double high, const std::string& help);
/// A word out of a few.
CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help);
/// `--no-huge-pages`.
CLI::Option* add_page_kind(CLI::App& app, PageKind& value);
CLI::Option* add_json(CLI::App& app, bool& value, const std::string& help);

/// Bounds of options that are not obvious.
inline constexpr std::int32_t kMostHeads = 1024;
inline constexpr std::int32_t kLongestHeadDim = 4096;
inline constexpr std::int32_t kLargestPage = 65536;
inline constexpr std::int32_t kMostThreads = 4096;

void add_shape(CLI::App& app, Shape& shape);

}  // namespace quire::tool
