// SPDX-License-Identifier: Apache-2.0
#include "reference.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

namespace ladder {
namespace {

using Row = std::array<double, kHeadDim>;

Row read_row(NoiseOf tensor, std::int64_t first) {
  Row row;
  for (int i = 0; i < kHeadDim; ++i) row[static_cast<std::size_t>(i)] = noise(tensor, first + i);
  return row;
}

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// The query heads of one kv head of one request: a key is generated once for all of them.
class GroupReference {
 public:
  GroupReference(const Workload& workload, int request, int kv_head)
      : workload_(workload),
        request_(workload.requests[static_cast<std::size_t>(request)]),
        kv_head_(kv_head),
        group_(workload.num_qo_heads / workload.num_kv_heads) {}

  void compute(Reference& out) const {
    const auto keys = static_cast<std::size_t>(request_.seq_len);
    std::vector<std::vector<double>> weights(static_cast<std::size_t>(group_));
    for (int head = 0; head < group_; ++head) {
      const Row q = read_row(NoiseOf::kQ, row_of(head) * kHeadDim);
      std::vector<double>& scores = weights[static_cast<std::size_t>(head)];
      scores.resize(keys);
      for (std::size_t t = 0; t < keys; ++t) {
        scores[t] = dot(q, read_row(NoiseOf::kK, element_of(t))) / std::sqrt(double{kHeadDim});
      }
      to_weights(scores);
      double squares = 0;
      for (const double weight : scores) squares += weight * weight;
      out.concentration[static_cast<std::size_t>(row_of(head))] = std::sqrt(squares);
    }
    for (std::size_t t = 0; t < keys; ++t) {
      const Row v = read_row(NoiseOf::kV, element_of(t));
      for (int head = 0; head < group_; ++head) {
        double* const o = &out.o[static_cast<std::size_t>(row_of(head) * kHeadDim)];
        const double weight = weights[static_cast<std::size_t>(head)][t];
        for (std::size_t i = 0; i < v.size(); ++i) o[i] += weight * v[i];
      }
    }
  }

 private:
  [[nodiscard]] std::int64_t row_of(int head) const {
    return std::int64_t{request_.q_start} * workload_.num_qo_heads + kv_head_ * group_ + head;
  }
  /// Of a token's key, in k_pages.
  [[nodiscard]] std::int64_t element_of(std::size_t token) const {
    const auto page = static_cast<std::size_t>(request_.kv_page_start) + token / kPageSize;
    const std::int64_t slot = std::int64_t{workload_.page_table[page]} * kPageSize +
                              static_cast<std::int64_t>(token % kPageSize);
    return (slot * workload_.num_kv_heads + kv_head_) * kHeadDim;
  }
  static void to_weights(std::vector<double>& scores) {
    double max = -std::numeric_limits<double>::infinity();
    for (const double score : scores) max = std::max(max, score);
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - max);
    for (double& score : scores) score /= sum;
  }

  const Workload& workload_;
  const RequestInfo& request_;
  int kv_head_;
  int group_;
};

}  // namespace

Reference compute_reference(const Workload& workload) {
  const auto rows = static_cast<std::size_t>(workload.num_rows());
  Reference reference{std::vector<double>(rows * kHeadDim), std::vector<double>(rows)};
  std::atomic<int> next = 0;
  const auto work = [&] {
    const int tasks = workload.batch() * workload.num_kv_heads;
    for (int task = next++; task < tasks; task = next++) {
      GroupReference(workload, task / workload.num_kv_heads, task % workload.num_kv_heads)
          .compute(reference);
    }
  };
  std::vector<std::thread> threads(std::max(1U, std::thread::hardware_concurrency()));
  for (std::thread& thread : threads) thread = std::thread(work);
  for (std::thread& thread : threads) thread.join();
  return reference;
}

double error_bound(bool weights_are_bf16, double concentration) {
  constexpr double kFloatRounding = 1.0 / (1 << 24);
  constexpr double kBf16Rounding = 1.0 / (1 << 9);
  double bound = 128 * kFloatRounding;
  if (weights_are_bf16) bound += kBf16Rounding * std::min(1.0, 3 * concentration);
  return bound * kNoiseMax;
}

}  // namespace ladder
