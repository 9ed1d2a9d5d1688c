// SPDX-License-Identifier: Apache-2.0
#include "bench/course.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/exit_code.hpp"
#include "common/format.hpp"

namespace quire::tool {
namespace {

using Json = nlohmann::json;

/// Lengths as the course writes them: a number, or [number, how often].
std::vector<std::int32_t> lengths_of(const Json& list) {
  std::vector<std::int32_t> lengths;
  for (const Json& entry : list) {
    const std::size_t count = entry.is_array() ? entry.at(1).get<std::size_t>() : 1;
    const auto length = (entry.is_array() ? entry.at(0) : entry).get<std::int32_t>();
    lengths.insert(lengths.end(), count, length);
  }
  return lengths;
}

/// The entry of a list that a member names; the first without one.
template <typename Value, std::size_t size>
Value one_of(const std::array<std::pair<const char*, Value>, size>& known, const Json& json,
             const char* member) {
  const auto name = json.value(member, std::string(known.front().first));
  for (const auto& [known_name, value] : known) {
    if (name == known_name) return value;
  }
  throw CommandError(ExitCode::kUsage,
                     fmt::format("course: {}: no such {}: {}", json.at("name").get<std::string>(),
                                 member, in_quotes(name)));
}

constexpr std::array kOperations = {std::pair{"attention", Operation::kAttention},
                                    std::pair{"append", Operation::kAppend},
                                    std::pair{"schedule", Operation::kSchedule}};
constexpr std::array kCacheDTypes = {std::pair{"", DType::kNone}, std::pair{"int8", DType::kInt8},
                                     std::pair{"float8_e4m3", DType::kFloat8E4M3},
                                     std::pair{"float8_e5m2", DType::kFloat8E5M2}};
constexpr std::array kQueryDTypes = {std::pair{"", DType::kNone},
                                     std::pair{"float8_e4m3", DType::kFloat8E4M3}};
constexpr std::array kMasks = {std::pair{"causal", Mask::kCausal}, std::pair{"none", Mask::kNone},
                               std::pair{"tree", Mask::kTree}};

Workload workload_of(const Json& json) {
  Workload workload;
  workload.name = json.at("name").get<std::string>();
  workload.operation = one_of(kOperations, json, "op");
  workload.first_course = json.value("first", false);
  workload.heads = {json.at("heads").at(0).get<std::int32_t>(),
                    json.at("heads").at(1).get<std::int32_t>()};
  workload.head_dim = json.at("head_dim").get<std::int32_t>();
  workload.page_size = json.at("page_size").get<std::int32_t>();
  workload.q_dtype = one_of(kQueryDTypes, json, "q_dtype");
  workload.kv_dtype = one_of(kCacheDTypes, json, "kv_dtype");
  workload.mask = one_of(kMasks, json, "mask");
  workload.window_left = json.value("window_left", -1);
  workload.qo_len = lengths_of(json.at("qo_len"));
  workload.kv_len = json.contains("kv_len") ? lengths_of(json.at("kv_len")) : workload.qo_len;
  for (const Json& group : json.value("shared", Json::array())) {
    workload.shared.push_back({group.at(0).get<std::int32_t>(), group.at(1).get<std::int32_t>(),
                               group.at(2).get<std::int32_t>()});
  }
  const Json peers = json.value("peers_us", Json::object());
  for (const auto& [name, us] : peers.items()) workload.peers.push_back({name, us.get<double>()});
  if (workload.qo_len.size() != workload.kv_len.size()) {
    throw CommandError(ExitCode::kUsage,
                       fmt::format("course: {}: expected as many kv_len as qo_len, got {} and {}",
                                   workload.name, workload.kv_len.size(), workload.qo_len.size()));
  }
  return workload;
}

/// First key that any query of the request sees, and one past the last.
struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

KeyRange visible_keys(const Workload& workload, std::size_t request) {
  const std::int64_t keys = workload.kv_len[request];
  const std::int64_t first_position = keys - workload.qo_len[request];
  const std::int64_t begin = workload.window_left < 0
                                 ? 0
                                 : std::max<std::int64_t>(0, first_position - workload.window_left);
  return {begin, keys};
}

/// Keys of all requests, those of a shared prefix once for each group.
std::int64_t distinct_keys(const Workload& workload) {
  std::int64_t keys = 0;
  std::vector<std::int64_t> shared(workload.kv_len.size(), 0);  // tokens counted with a group
  for (const SharedPrefix& group : workload.shared) {
    const auto first = static_cast<std::size_t>(group.first);
    keys += group.tokens - shared[first];
    std::fill(shared.begin() + group.first, shared.begin() + group.last_exclusive, group.tokens);
  }
  for (std::size_t i = 0; i < workload.kv_len.size(); ++i) {
    const KeyRange range = visible_keys(workload, i);
    keys += range.end - std::max(range.begin, shared[i]);
  }
  return keys;
}

/// Keys that the queries of a request see among its new tokens.
std::int64_t pairs_in_tree(std::int32_t queries) {
  std::int64_t pairs = 0;
  for (std::int32_t node = 0; node < queries; ++node) {
    for (std::int32_t seen = node; seen >= 0; seen = tree_parent(seen)) ++pairs;
  }
  return pairs;
}

double total(const std::vector<std::int32_t>& lengths) {
  double sum = 0;
  for (const std::int32_t length : lengths) sum += length;
  return sum;
}

}  // namespace

std::int64_t Workload::visible_pairs() const {
  std::int64_t pairs = 0;
  for (std::size_t i = 0; i < qo_len.size(); ++i) {
    const std::int64_t keys = kv_len[i];
    const std::int64_t first = keys - qo_len[i];
    if (mask == Mask::kTree) {
      pairs += first * qo_len[i] + pairs_in_tree(qo_len[i]);
      continue;
    }
    for (std::int64_t position = first; position < keys; ++position) {
      const std::int64_t begin =
          window_left < 0 ? 0 : std::max<std::int64_t>(0, position - window_left);
      pairs += std::max<std::int64_t>(0, (mask == Mask::kCausal ? position + 1 : keys) - begin);
    }
  }
  return pairs;
}

double Workload::flop() const {
  if (operation != Operation::kAttention) return 0;
  constexpr double kPerElementPair = 4;  // a multiply-add in q·k, another in p·v
  return kPerElementPair * heads.qo * head_dim * static_cast<double>(visible_pairs());
}

double Workload::bytes(DType dtype, DType dtype_of_cache) const {
  if (operation == Operation::kSchedule) return 0;
  constexpr double kTwo = 2;  // q and o, K and V, read and written
  const auto kv_row = kTwo * heads.kv * head_dim * static_cast<double>(size_of(dtype_of_cache));
  if (operation == Operation::kAppend) return kTwo * total(qo_len) * kv_row;
  const auto q_row = kTwo * heads.qo * head_dim * static_cast<double>(size_of(dtype));
  return total(qo_len) * q_row + static_cast<double>(distinct_keys(*this)) * kv_row;
}

std::optional<Peer> Workload::best_peer() const {
  constexpr std::array<std::string_view, 3> kOtherLayouts = {"_contiguous", "_page128", "_page256"};
  std::optional<Peer> best;
  for (const Peer& peer : peers) {
    const bool other = std::any_of(
        kOtherLayouts.begin(), kOtherLayouts.end(),
        [&](std::string_view ending) { return std::string_view(peer.name).ends_with(ending); });
    if (!other && (!best || peer.us < best->us)) best = peer;
  }
  return best;
}

Course parse_course(std::string_view json) {
  try {
    const Json parsed = Json::parse(json);
    Course course;
    course.cpu_scale = parsed.at("cpu_scale").get<std::int32_t>();
    constexpr double kGigaPerTera = 1000;
    course.published = {parsed.value("plain_read_gb_per_s", 0.0),
                        parsed.value("matmul_tflop_per_s", 0.0) * kGigaPerTera};
    for (const Json& workload : parsed.at("workloads")) {
      course.workloads.push_back(workload_of(workload));
    }
    return course;
  } catch (const Json::exception& error) {
    throw CommandError(ExitCode::kUsage, fmt::format("course: {}", error.what()));
  }
}

Workload scaled(Workload workload, std::int32_t factor) {
  const auto divide = [factor](std::int32_t& length) {
    if (length >= kShortest) length = (length + factor - 1) / factor;
  };
  std::for_each(workload.qo_len.begin(), workload.qo_len.end(), divide);
  std::for_each(workload.kv_len.begin(), workload.kv_len.end(), divide);
  if (workload.window_left > 0) divide(workload.window_left);
  for (SharedPrefix& group : workload.shared) {
    divide(group.tokens);
    group.tokens -= group.tokens % workload.page_size;
  }
  for (std::size_t i = 0; i < workload.kv_len.size(); ++i) {
    workload.kv_len[i] = std::max(workload.kv_len[i], workload.qo_len[i]);
  }
  return workload;
}

}  // namespace quire::tool
