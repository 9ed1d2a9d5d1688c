// SPDX-License-Identifier: Apache-2.0
// What an 8-bit cache costs in accuracy, as tables in Markdown:
//
//   kv_accuracy [cpu|cuda|cuda:N] [keys]
//
// K and V are drawn from distributions with and without outliers and written by `append` with a
// scale per tensor, per head or per token. Two errors of o, root mean square over that of o itself:
// of quantisation, the fp64 oracle on what the cache holds against the oracle on what was drawn; and
// of the kernel, its o (float32, bf16 queries) against the oracle on what the cache holds. Then the same
// for chunks of prompts over float8_e4m3, with queries of bf16 and of float8_e4m3 (a scale per head), where
// kernels may multiply K as it is.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <numbers>
#include <numeric>
#include <string>
#include <vector>

#include "common/numbers.hpp"
#include "common/options.hpp"
#include "common/random.hpp"
#include "common/table.hpp"
#include "device/mirror.hpp"
#include "device/place.hpp"
#include "quire/attention.hpp"
#include "quire/executors.hpp"
#include "quire/reference.hpp"

namespace quire::tool {
namespace {

constexpr std::int32_t kQueryHeads = 16;
constexpr std::int32_t kKvHeads = 4;
constexpr std::int32_t kHeadDim = 128;
constexpr std::int32_t kRequests = 4;
constexpr std::int32_t kChunk = 16;  // queries of a request, 64 rows for a kv head
constexpr std::int32_t kPageSize = 16;
constexpr double kOutlier = 20;  // times as large as the rest

enum class Spread { kNormal, kChannels, kTokens, kTails };
struct NamedSpread {
  Spread spread;
  const char* name;
};
constexpr std::array kSpreads = {
    NamedSpread{Spread::kNormal, "normal"},
    NamedSpread{Spread::kChannels, "2 of 128 channels of K 20 times as large"},
    NamedSpread{Spread::kTokens, "1 of 64 tokens 20 times as large"},
    NamedSpread{Spread::kTails, "heavy tails (Student's t, 3 degrees of freedom)"}};
constexpr std::array kFormats = {DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8};
constexpr std::array kScales = {KvScale::kPerTensor, KvScale::kPerHead, KvScale::kPerToken};

double normal(Random& random) {
  return std::sqrt(-2 * std::log1p(-random.uniform())) *
         std::cos(2 * std::numbers::pi * random.uniform());
}

/// Largest finite number of a format.
float largest_of(DType dtype) {
  if (dtype == DType::kInt8) return 127;
  return dtype == DType::kFloat8E4M3 ? 448 : 57344;
}

/// K and V in fp32, [tokens, heads, dim], and q in bf16, [queries, heads, dim].
struct Drawn {
  Drawn(Spread spread, std::int32_t keys, std::int32_t queries_each)
      : tokens(keys * kRequests), queries(queries_each * kRequests) {
    Random random(7);
    const auto count = static_cast<std::size_t>(tokens) * kKvHeads * kHeadDim;
    for (std::vector<float>* values : {&k, &v}) {
      values->resize(count);
      for (std::size_t i = 0; i < count; ++i) {
        (*values)[i] = static_cast<float>(number(random, spread, i, values == &k));
      }
    }
    // Logits of about the same size, whatever K is.
    double squares = 0;
    for (const float x : k) squares += double{x} * x;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(count));
    q.resize(static_cast<std::size_t>(queries) * kQueryHeads * kHeadDim * sizeof(std::uint16_t));
    for (std::size_t i = 0; i < q.size() / 2; ++i) {
      store_float(DType::kBFloat16, static_cast<float>(2 * scale * normal(random)),
                  q.data() + 2 * i);
    }
  }

  static double number(Random& random, Spread spread, std::size_t at, bool is_key) {
    const double x = normal(random);
    const std::size_t token = at / (std::size_t{kKvHeads} * kHeadDim);
    switch (spread) {
      case Spread::kNormal:
        return x;
      case Spread::kChannels:
        return is_key && at % 64 == 5 ? kOutlier * x : x;
      case Spread::kTokens:
        return token % 64 == 3 ? kOutlier * x : x;
      case Spread::kTails: {
        double squares = 0;
        for (int i = 0; i < 3; ++i) squares += std::pow(normal(random), 2);
        return x / std::sqrt(squares / 3);
      }
    }
    return x;
  }

  std::int32_t tokens;
  std::int32_t queries;
  std::vector<float> k, v;
  std::vector<std::byte> q;
};

/// The batch of some queries per request, and a cache of its own: pages one after another.
class Cache {
 public:
  Cache(const Drawn& drawn, DType format, KvScale kind, DType q_dtype = DType::kBFloat16)
      : drawn_(drawn), format_(format) {
    spec.num_qo_heads = kQueryHeads;
    spec.num_kv_heads = kKvHeads;
    spec.head_dim_qk = spec.head_dim_vo = kHeadDim;
    spec.q_dtype = q_dtype;
    spec.kv_dtype = format;
    spec.o_dtype = DType::kFloat32;
    spec.page_size = kPageSize;
    spec.kv_scale = format == DType::kFloat32 ? KvScale::kNone : kind;
    make_batch();
    make_tensors();
    if (q_dtype != DType::kBFloat16) quantise_queries();
    if (spec.kv_scale == KvScale::kPerTensor || spec.kv_scale == KvScale::kPerHead) make_scales();
    write();
  }

  /// Its rows are shared out to all cores.
  [[nodiscard]] std::vector<double> oracle() const {
    struct Context {
      const Cache& cache;
      std::vector<double> o;
    };
    Context context{*this, std::vector<double>(o.size())};
    const auto compute = [](void* opaque, std::int32_t row) noexcept {
      Context& to = *static_cast<Context*>(opaque);
      const Cache& cache = to.cache;
      const std::int32_t each = cache.drawn_.queries / kRequests;
      const std::int32_t query = row / kQueryHeads;
      const std::vector<double> result =
          reference_attention_row(cache.spec, cache.batch, cache.tensors, query / each,
                                  query % each, row % kQueryHeads)
              .o;
      std::ranges::copy(result, to.o.begin() + std::ptrdiff_t{row} * kHeadDim);
    };
    default_executor().parallel(drawn_.queries * kQueryHeads, compute, &context);
    return context.o;
  }

  AttentionSpec spec;
  Batch batch;
  AttentionTensors tensors;
  std::vector<float> o;

 private:
  [[nodiscard]] std::int64_t pages() const { return drawn_.tokens / kPageSize; }

  void make_batch() {
    const std::int32_t keys = drawn_.tokens / kRequests;
    qo_indptr_.resize(kRequests + 1);
    std::iota(qo_indptr_.begin(), qo_indptr_.end(), 0);
    for (std::int32_t& row : qo_indptr_) row *= drawn_.queries / kRequests;
    kv_len_.assign(kRequests, keys);
    table_.resize(static_cast<std::size_t>(pages()));
    std::iota(table_.begin(), table_.end(), 0);
    batch.qo_indptr = {qo_indptr_.data(), DType::kInt32, {kRequests + 1}};
    batch.kv_len = {kv_len_.data(), DType::kInt32, {kRequests}};
    batch.page_table = {table_.data(), DType::kInt32, {kRequests, pages() / kRequests}};
  }

  void make_tensors() {
    const std::size_t bytes = drawn_.k.size() * size_of(format_);
    k_.resize(bytes);
    v_.resize(bytes);
    o.resize(static_cast<std::size_t>(drawn_.queries) * kQueryHeads * kHeadDim);
    tensors.q = {drawn_.q.data(), DType::kBFloat16, {drawn_.queries, kQueryHeads, kHeadDim}};
    tensors.k = {k_.data(), format_, {pages(), kPageSize, kKvHeads, kHeadDim}};
    tensors.v = {v_.data(), format_, {pages(), kPageSize, kKvHeads, kHeadDim}};
    tensors.o = {o.data(), DType::kFloat32, {drawn_.queries, kQueryHeads, kHeadDim}};
  }

  /// As if they were keys of a page, with a scale for each head.
  void quantise_queries() {
    constexpr float kLargest = 448;
    q_scale_.assign(kQueryHeads, 0);
    for (std::size_t i = 0; i < drawn_.q.size() / 2; ++i) {
      float& scale = q_scale_[i / kHeadDim % kQueryHeads];
      scale = std::max(scale, std::fabs(load_float(DType::kBFloat16, &drawn_.q[2 * i])) / kLargest);
    }
    std::vector<std::int64_t> slots(static_cast<std::size_t>(drawn_.queries));
    std::iota(slots.begin(), slots.end(), std::int64_t{0});
    q_.resize(drawn_.q.size() / 2);
    std::vector<std::byte> again(q_.size());
    AppendTensors added;
    added.k = added.v = tensors.q;
    added.k_cache = {q_.data(), spec.q_dtype, {1, drawn_.queries, kQueryHeads, kHeadDim}};
    added.v_cache = {again.data(), spec.q_dtype, {1, drawn_.queries, kQueryHeads, kHeadDim}};
    added.slot_mapping = {slots.data(), DType::kInt64, {drawn_.queries}};
    tensors.q_scale = {q_scale_.data(), DType::kFloat32, {kQueryHeads}};
    added.k_scale = added.v_scale = tensors.q_scale;
    append(Device::cpu(), KvLayout::kNHD, {}, added).throw_if_error();
    tensors.q = {q_.data(), spec.q_dtype, {drawn_.queries, kQueryHeads, kHeadDim}};
  }

  /// The largest magnitude of all, or of each head, becomes the largest number.
  void make_scales() {
    const bool per_head = spec.kv_scale == KvScale::kPerHead;
    const auto find = [&](const std::vector<float>& values, std::vector<float>& scales) {
      scales.assign(per_head ? kKvHeads : 1, 0);
      for (std::size_t i = 0; i < values.size(); ++i) {
        float& scale = scales[per_head ? i / kHeadDim % kKvHeads : 0];
        scale = std::max(scale, std::fabs(values[i]));
      }
      for (float& scale : scales) scale /= largest_of(format_);
    };
    find(drawn_.k, k_scale_);
    find(drawn_.v, v_scale_);
    const auto count = static_cast<std::int64_t>(k_scale_.size());
    tensors.k_scale = {k_scale_.data(), DType::kFloat32, {count}};
    tensors.v_scale = {v_scale_.data(), DType::kFloat32, {count}};
  }

  void write() {
    std::vector<std::int64_t> slots(static_cast<std::size_t>(drawn_.tokens));
    std::iota(slots.begin(), slots.end(), std::int64_t{0});
    AppendTensors added;
    added.k = {drawn_.k.data(), DType::kFloat32, {drawn_.tokens, kKvHeads, kHeadDim}};
    added.v = {drawn_.v.data(), DType::kFloat32, {drawn_.tokens, kKvHeads, kHeadDim}};
    added.k_cache = {k_.data(), format_, {pages(), kPageSize, kKvHeads, kHeadDim}};
    added.v_cache = {v_.data(), format_, {pages(), kPageSize, kKvHeads, kHeadDim}};
    added.slot_mapping = {slots.data(), DType::kInt64, {drawn_.tokens}};
    if (spec.kv_scale == KvScale::kPerToken) {
      k_scale_.resize(static_cast<std::size_t>(drawn_.tokens) * kKvHeads);
      v_scale_.resize(k_scale_.size());
      added.k_token_scale = {k_scale_.data(), DType::kFloat32, {pages(), kKvHeads, kPageSize}};
      added.v_token_scale = {v_scale_.data(), DType::kFloat32, {pages(), kKvHeads, kPageSize}};
      tensors.k_scale = added.k_token_scale;
      tensors.v_scale = added.v_token_scale;
    } else {
      added.k_scale = tensors.k_scale;
      added.v_scale = tensors.v_scale;
    }
    append(Device::cpu(), KvLayout::kNHD, {}, added).throw_if_error();
  }

  const Drawn& drawn_;
  const DType format_;
  std::vector<std::int32_t> qo_indptr_, kv_len_, table_;
  std::vector<std::byte> q_, k_, v_;
  std::vector<float> q_scale_, k_scale_, v_scale_;
};

/// Root mean square of a − b, over that of b.
template <typename Number>
double relative_error(const std::vector<Number>& a, const std::vector<double>& b) {
  double errors = 0;
  double squares = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    errors += std::pow(static_cast<double>(a[i]) - b[i], 2);
    squares += b[i] * b[i];
  }
  return std::sqrt(errors / squares);
}

/// @return The kernel's error, below 0 if there is no kernel.
double kernel_error(Cache& cache, const std::vector<double>& oracle, Place& place) {
  if (!supports(place.device(), cache.spec).supported) return -1;
  Mirror mirror(place);
  attention(place.device(), cache.spec, mirror.of(cache.batch), mirror.of(cache.tensors),
            {place.stream()});
  mirror.download(cache.tensors.o);
  place.synchronize();
  return relative_error(cache.o, oracle);
}

/// @return Whether every kernel that ran was as near to its oracle as it should be.
bool print_table(const NamedSpread& spread, std::int32_t keys, Place& place) {
  constexpr double kMostOfKernel = 2e-3;
  const Drawn drawn(spread.spread, keys, 1);
  const std::vector<double> exact = Cache(drawn, DType::kFloat32, KvScale::kNone).oracle();
  Table table({"cache", ">per tensor", ">per head", ">per token", ">kernel, at most"});
  bool passed = true;
  for (const DType format : kFormats) {
    std::vector<std::string> cells = {std::string(to_string(format))};
    double worst = -1;
    for (const KvScale kind : kScales) {
      Cache cache(drawn, format, kind);
      const std::vector<double> stored = cache.oracle();
      cells.push_back(fmt::format("{:.2f} %", 100 * relative_error(stored, exact)));
      const double of_kernel = kernel_error(cache, stored, place);
      passed = passed && of_kernel <= kMostOfKernel;  // not if it is NaN
      worst = std::max(worst, of_kernel);
    }
    cells.push_back(worst < 0 ? "–" : fmt::format("{:.1e}", worst));
    table.add(cells);
  }
  fmt::print("**{}**\n\n{}\n", spread.name, table.markdown());
  return passed;
}

/// Chunks of prompts over float8_e4m3, with queries of bf16 and of float8_e4m3.
bool print_query_table(const NamedSpread& spread, std::int32_t keys, Place& place) {
  // Sums of 8-bit products are cut off below their largest term, and outliers make large ones.
  constexpr double kMostOfKernel = 3e-3;
  const Drawn drawn(spread.spread, keys, kChunk);
  const std::vector<double> exact = Cache(drawn, DType::kFloat32, KvScale::kNone).oracle();
  Table table({"scales", ">bf16 queries", ">kernel", ">8-bit queries", ">kernel"});
  bool passed = true;
  for (const auto& [kind, name] :
       {std::pair{KvScale::kPerTensor, "per tensor"}, std::pair{KvScale::kPerHead, "per head"}}) {
    std::vector<std::string> cells = {name};
    for (const DType q_dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
      Cache cache(drawn, DType::kFloat8E4M3, kind, q_dtype);
      const std::vector<double> stored = cache.oracle();
      const double of_kernel = kernel_error(cache, stored, place);
      passed = passed && of_kernel <= kMostOfKernel;
      cells.push_back(fmt::format("{:.2f} %", 100 * relative_error(stored, exact)));
      cells.push_back(of_kernel < 0 ? "–" : fmt::format("{:.1e}", of_kernel));
    }
    table.add(cells);
  }
  fmt::print("**{}, chunks of {} queries**\n\n{}\n", spread.name, kChunk, table.markdown());
  return passed;
}

}  // namespace
}  // namespace quire::tool

int main(int argc, char** argv) {
  using namespace quire::tool;
  constexpr std::int64_t kMostKeys = 65536;
  try {
    const auto place = open_place(parse_device(argc > 1 ? argv[1] : "cpu"));
    const auto keys = static_cast<std::int32_t>(
        argc > 2 ? parse_whole(argv[2], kPageSize, kMostKeys) / kPageSize * kPageSize : 1024);
    bool passed = true;
    for (const NamedSpread& spread : kSpreads) passed = print_table(spread, keys, *place) && passed;
    for (const NamedSpread& spread : kSpreads) {
      passed = print_query_table(spread, keys, *place) && passed;
    }
    if (!passed) fmt::print(stderr, "kv_accuracy: a kernel is too far from its oracle\n");
    return passed ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "kv_accuracy: {}\n", error.what());
    return 2;
  }
}
