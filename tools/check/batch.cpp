// SPDX-License-Identifier: Apache-2.0
#include "check/batch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "common/accuracy.hpp"
#include "common/buffer.hpp"
#include "common/cache_scales.hpp"
#include "common/noise.hpp"
#include "common/numbers.hpp"
#include "common/page_layout.hpp"
#include "device/mirror.hpp"
#include "quire/reference.hpp"

namespace quire::tool {
namespace {

constexpr float kOfKeys = 0.75F;  // a scale of V, of K's
constexpr int kPoison = 0xff;     // NaN in every format that has one
constexpr LayoutExtras kExtras = {.padding_rows = 3, .stale_columns = 2, .unused_pages = true};
constexpr std::int32_t kBitsPerWord = 32;
constexpr std::int32_t kBitsPerByte = 8;

std::int32_t divide_up(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

Buffer poisoned(std::size_t bytes) {
  Buffer buffer(bytes);
  std::memset(buffer.data(), kPoison, bytes);
  return buffer;
}

DeviceMemory poisoned(Place& place, std::size_t bytes) {
  DeviceMemory memory(place, bytes);
  memory.fill(kPoison);
  return memory;
}

/// A cache of K or V, and how it is laid out.
class Pages {
 public:
  Pages(const AttentionSpec& spec, std::int32_t num_pages, std::int32_t head_dim)
      : spec_(spec),
        num_pages_(num_pages),
        head_dim_(head_dim),
        head_bytes_(static_cast<std::size_t>(head_dim) * size_of(spec.kv_dtype)),
        buffer_(poisoned(static_cast<std::size_t>(num_pages) *
                         static_cast<std::size_t>(spec.page_size) *
                         static_cast<std::size_t>(spec.num_kv_heads) * head_bytes_)) {}

  [[nodiscard]] MutableTensorView view() const {
    if (spec_.kv_layout == KvLayout::kNHD) {
      return {buffer_.data(),
              spec_.kv_dtype,
              {num_pages_, spec_.page_size, spec_.num_kv_heads, head_dim_}};
    }
    return {buffer_.data(),
            spec_.kv_dtype,
            {num_pages_, spec_.num_kv_heads, spec_.page_size, head_dim_}};
  }

  /// @return Where a token's head is.
  [[nodiscard]] std::byte* at(std::int32_t page, std::int32_t offset, std::int32_t head) const {
    const std::int64_t token_or_head = spec_.kv_layout == KvLayout::kNHD
                                           ? std::int64_t{offset} * spec_.num_kv_heads + head
                                           : std::int64_t{head} * spec_.page_size + offset;
    const std::int64_t per_page = std::int64_t{spec_.page_size} * spec_.num_kv_heads;
    return buffer_.data() + static_cast<std::size_t>(page * per_page + token_or_head) * head_bytes_;
  }
  [[nodiscard]] std::size_t head_bytes() const { return head_bytes_; }

 private:
  AttentionSpec spec_;
  std::int32_t num_pages_;
  std::int32_t head_dim_;
  std::size_t head_bytes_;
  Buffer buffer_;
};

PageLayout layout_of(const CheckBatch& batch) {
  std::vector<std::int32_t> queries;
  std::vector<std::int32_t> keys;
  for (const RequestLengths& request : batch.requests) {
    queries.push_back(request.queries);
    keys.push_back(request.keys);
  }
  return {queries, keys, batch.spec.page_size, batch.seed, {}, kExtras};
}

/// All tensors of a batch.
class Workbench {
 public:
  explicit Workbench(const CheckBatch& batch)
      : spec_(batch.spec),
        requests_(batch.requests),
        layout_(layout_of(batch)),
        q_noise_(spec_.q_dtype, batch.seed),
        kv_noise_(spec_.kv_dtype, ~batch.seed),
        scales_(spec_, layout_.num_pages(), kv_noise_.scale()),
        k_scale_(scales_.values()),
        v_scale_(scales_.values()),
        k_(spec_, layout_.num_pages(), spec_.head_dim_qk),
        v_(spec_, layout_.num_pages(), spec_.head_dim_vo) {
    for (float& scale : v_scale_) scale *= kOfKeys;
    fill();
    draw_masks(batch.seed);
    draw_head_parameters(batch.seed);
  }

  [[nodiscard]] const PageLayout& layout() const { return layout_; }
  [[nodiscard]] double largest_v() const { return kv_noise_.largest(); }

  [[nodiscard]] Batch batch() const {
    Batch batch = layout_.batch();
    if (spec_.mask == Mask::kTree) {
      batch.tree_mask = {tree_mask_.data(), DType::kUInt32, {total_q(), tree_words_}};
    }
    if (spec_.mask == Mask::kFull) {
      batch.full_mask = {
          full_mask_.data(), DType::kUInt8, {static_cast<std::int64_t>(full_mask_.size())}};
      batch.full_mask_indptr = {full_mask_indptr_.data(), DType::kInt64, {layout_.num_seqs() + 1}};
    }
    return batch;
  }

  [[nodiscard]] AttentionTensors tensors() const {
    AttentionTensors tensors;
    tensors.q = {q_.data(), spec_.q_dtype, {total_q(), spec_.num_qo_heads, spec_.head_dim_qk}};
    tensors.k = k_.view();
    tensors.v = v_.view();
    tensors.o = {o_.data(), spec_.o_dtype, {total_q(), spec_.num_qo_heads, spec_.head_dim_vo}};
    tensors.lse = {lse_.data(), DType::kFloat32, {total_q(), spec_.num_qo_heads}};
    // The views only read.
    tensors.k_scale = scales_.view(const_cast<float*>(k_scale_.data()));
    tensors.v_scale = scales_.view(const_cast<float*>(v_scale_.data()));
    if (spec_.sinks) tensors.sinks = {sinks_.data(), DType::kFloat32, {spec_.num_qo_heads}};
    if (spec_.alibi) tensors.alibi_slopes = {slopes_.data(), DType::kFloat32, {spec_.num_qo_heads}};
    return tensors;
  }

  /// Writes the new tokens' K and V into their pages. @return Why they are not there; empty if so.
  std::string append_new_tokens(Mirror& mirror, const Place& place, Executor* executor);

  [[nodiscard]] const std::byte* output(std::int64_t row, std::int32_t head) const {
    const auto index = static_cast<std::size_t>(row * spec_.num_qo_heads + head);
    return o_.data() + index * static_cast<std::size_t>(spec_.head_dim_vo) * size_of(spec_.o_dtype);
  }
  [[nodiscard]] float lse(std::int64_t row, std::int32_t head) const {
    float value = 0;
    const auto index = static_cast<std::size_t>(row * spec_.num_qo_heads + head);
    std::memcpy(&value, lse_.data() + index * sizeof value, sizeof value);
    return value;
  }

 private:
  [[nodiscard]] std::int32_t total_q() const { return layout_.total_q(); }

  /// Position of a request's first new token; below 0 if it has more queries than keys.
  [[nodiscard]] std::int32_t first_new(std::size_t seq) const {
    return requests_[seq].keys - requests_[seq].queries;
  }

  /// Values of a token in one head, as they are to be in the cache.
  void make_token(NoiseTensor tensor, std::size_t seq, std::int32_t position, std::int32_t head,
                  std::byte* to) const {
    const std::int32_t dim = tensor == NoiseTensor::kK ? spec_.head_dim_qk : spec_.head_dim_vo;
    kv_noise_.fill(to, static_cast<std::size_t>(dim), noise_key(seq, head, tensor, position));
  }

  /// NaN in the scales of all tokens that are not in the cache.
  void poison_token_scales() {
    if (spec_.kv_scale != KvScale::kPerToken) return;
    std::vector<float> poisoned(k_scale_.size(), std::numeric_limits<float>::quiet_NaN());
    for (std::size_t seq = 0; seq < requests_.size(); ++seq) {
      for (std::int32_t t = 0; t < requests_[seq].keys; ++t) {
        for (std::int32_t head = 0; head < spec_.num_kv_heads; ++head) {
          const std::int64_t row =
              std::int64_t{layout_.page_of(seq, t)} * spec_.num_kv_heads + head;
          const auto at = static_cast<std::size_t>(row * spec_.page_size + t % spec_.page_size);
          poisoned[at] = k_scale_[at];
        }
      }
    }
    k_scale_ = v_scale_ = poisoned;
    for (float& scale : v_scale_) scale *= kOfKeys;
  }

  void fill() {
    poison_token_scales();
    const auto rows = static_cast<std::size_t>(total_q());
    const auto q_row =
        static_cast<std::size_t>(spec_.num_qo_heads) * static_cast<std::size_t>(spec_.head_dim_qk);
    const auto o_row =
        static_cast<std::size_t>(spec_.num_qo_heads) * static_cast<std::size_t>(spec_.head_dim_vo);
    q_ = poisoned(rows * q_row * size_of(spec_.q_dtype));
    o_ = poisoned(rows * o_row * size_of(spec_.o_dtype));
    lse_ = poisoned(rows * static_cast<std::size_t>(spec_.num_qo_heads) * sizeof(float));
    q_noise_.fill(q_.data(), static_cast<std::size_t>(total_q() - kExtras.padding_rows) * q_row, 0);
    for (std::size_t seq = 0; seq < requests_.size(); ++seq) {
      // An 8-bit cache is filled here; another gets its new tokens from `append`.
      const std::int32_t end = is_float(spec_.kv_dtype) ? first_new(seq) : requests_[seq].keys;
      for (std::int32_t t = 0; t < end; ++t) {
        for (std::int32_t head = 0; head < spec_.num_kv_heads; ++head) {
          const std::int32_t offset = t % spec_.page_size;
          make_token(NoiseTensor::kK, seq, t, head, k_.at(layout_.page_of(seq, t), offset, head));
          make_token(NoiseTensor::kV, seq, t, head, v_.at(layout_.page_of(seq, t), offset, head));
        }
      }
    }
  }

  void draw_masks(std::uint64_t seed);
  void draw_head_parameters(std::uint64_t seed);

  AttentionSpec spec_;
  std::vector<RequestLengths> requests_;
  PageLayout layout_;
  Noise q_noise_;
  Noise kv_noise_;
  CacheScales scales_;
  std::vector<float> k_scale_, v_scale_;
  Pages k_, v_;
  std::int32_t tree_words_ = 1;
  std::vector<std::uint32_t> tree_mask_;
  std::vector<std::uint8_t> full_mask_;
  std::vector<std::int64_t> full_mask_indptr_ = {0};
  std::vector<float> sinks_, slopes_;
  Buffer q_, o_, lse_;
};

void Workbench::draw_masks(std::uint64_t seed) {
  Random random(seed);
  if (spec_.mask == Mask::kTree) {
    for (const RequestLengths& request : requests_) {
      tree_words_ = std::max(tree_words_, divide_up(request.queries, kBitsPerWord));
    }
    tree_mask_.resize(static_cast<std::size_t>(total_q()) * static_cast<std::size_t>(tree_words_));
    for (std::uint32_t& word : tree_mask_) word = static_cast<std::uint32_t>(random.bits());
  }
  if (spec_.mask == Mask::kFull) {
    for (const RequestLengths& request : requests_) {
      const std::int64_t bits = std::int64_t{request.queries} * request.keys;
      full_mask_indptr_.push_back(full_mask_indptr_.back() +
                                  (bits + kBitsPerByte - 1) / kBitsPerByte);
    }
    full_mask_.resize(static_cast<std::size_t>(full_mask_indptr_.back()));
    for (std::uint8_t& byte : full_mask_) byte = static_cast<std::uint8_t>(random.bits());
  }
}

/// Sinks around the largest logits, and slopes as models with ALiBi have them.
void Workbench::draw_head_parameters(std::uint64_t seed) {
  constexpr double kLargestSink = 4;
  constexpr double kLastSlope = -8;  // as a power of two
  Random random(~seed);
  for (std::int32_t head = 0; head < spec_.num_qo_heads; ++head) {
    sinks_.push_back(static_cast<float>(kLargestSink * (2 * random.uniform() - 1)));
    slopes_.push_back(static_cast<float>(std::exp2(kLastSlope * (head + 1) / spec_.num_qo_heads)));
  }
}

std::string Workbench::append_new_tokens(Mirror& mirror, const Place& place, Executor* executor) {
  if (!is_float(spec_.kv_dtype)) return {};
  const auto rows = static_cast<std::size_t>(total_q());
  const auto kv_heads = static_cast<std::size_t>(spec_.num_kv_heads);
  const Buffer k_new = poisoned(rows * kv_heads * k_.head_bytes());
  const Buffer v_new = poisoned(rows * kv_heads * v_.head_bytes());
  // Visits each head of each new token that has a place in the cache.
  const auto visit = [&](auto body) {
    for (std::size_t seq = 0; seq < requests_.size(); ++seq) {
      for (std::int32_t i = std::max(0, -first_new(seq)); i < requests_[seq].queries; ++i) {
        for (std::int32_t head = 0; head < spec_.num_kv_heads; ++head) {
          const auto row = static_cast<std::size_t>(layout_.first_row(seq) + i) * kv_heads +
                           static_cast<std::size_t>(head);
          body(seq, first_new(seq) + i, head, k_new.data() + row * k_.head_bytes(),
               v_new.data() + row * v_.head_bytes());
        }
      }
    }
  };
  visit([&](std::size_t seq, std::int32_t t, std::int32_t head, std::byte* k, std::byte* v) {
    make_token(NoiseTensor::kK, seq, t, head, k);
    make_token(NoiseTensor::kV, seq, t, head, v);
  });
  AppendTensors added;
  added.k = {k_new.data(), spec_.kv_dtype, {total_q(), spec_.num_kv_heads, spec_.head_dim_qk}};
  added.v = {v_new.data(), spec_.kv_dtype, {total_q(), spec_.num_kv_heads, spec_.head_dim_vo}};
  added.k_cache = k_.view();
  added.v_cache = v_.view();
  append(place.device(), spec_.kv_layout, mirror.of(batch()), mirror.of(added), {place.stream()},
         {executor, {}})
      .throw_if_error();
  mirror.download(added.k_cache);
  mirror.download(added.v_cache);

  std::string complaint;
  visit([&](std::size_t seq, std::int32_t t, std::int32_t head, std::byte* k, std::byte* v) {
    const std::int32_t page = layout_.page_of(seq, t);
    const std::int32_t offset = t % spec_.page_size;
    if (std::memcmp(k, k_.at(page, offset, head), k_.head_bytes()) != 0 ||
        std::memcmp(v, v_.at(page, offset, head), v_.head_bytes()) != 0) {
      complaint =
          fmt::format("append: request {}, position {}, head {} is not in its page", seq, t, head);
    }
  });
  return complaint;
}

RequestVerdict judge(const AttentionSpec& spec, const Workbench& bench, std::size_t seq,
                     const RequestLengths& lengths) {
  RequestVerdict verdict{lengths, 0, {}};
  const Batch batch = bench.batch();
  const AttentionTensors tensors = bench.tensors();
  for (std::int32_t query = 0; query < lengths.queries; ++query) {
    const std::int64_t row = bench.layout().first_row(seq) + query;
    for (std::int32_t head = 0; head < spec.num_qo_heads; ++head) {
      const ReferenceRow expected = reference_attention_row(
          spec, batch, tensors, static_cast<std::int32_t>(seq), query, head);
      const RowComparison compared =
          compare_row(spec, expected.o, bench.output(row, head), bench.largest_v());
      verdict.max_error = std::max(verdict.max_error, compared.max_error);
      std::string complaint = compared.complaint;
      if (complaint.empty() && !lse_matches(spec, expected.lse, bench.lse(row, head))) {
        complaint =
            fmt::format("LSE: expected {:.6g}, got {:.6g}", expected.lse, bench.lse(row, head));
      }
      if (!complaint.empty() && verdict.complaint.empty()) {
        verdict.complaint = fmt::format("query {}, head {}, {}", query, head, complaint);
      }
    }
  }
  return verdict;
}

/// Rows that belong to no request: o = 0, LSE = −inf.
std::string judge_padding(const AttentionSpec& spec, const Workbench& bench) {
  for (std::int64_t row = bench.layout().total_q() - kExtras.padding_rows;
       row < bench.layout().total_q(); ++row) {
    for (std::int32_t head = 0; head < spec.num_qo_heads; ++head) {
      for (std::int32_t i = 0; i < spec.head_dim_vo; ++i) {
        const std::byte* element =
            bench.output(row, head) + static_cast<std::size_t>(i) * size_of(spec.o_dtype);
        if (load_float(spec.o_dtype, element) != 0) return "padding rows of o: expected 0";
      }
      const float lse = bench.lse(row, head);
      if (!std::isinf(lse) || lse > 0) return "padding rows of lse: expected −inf";
    }
  }
  return {};
}

}  // namespace

std::vector<RequestLengths> random_requests(Random& random, std::int32_t page_size) {
  constexpr std::int32_t kMostRequests = 6;
  constexpr std::int32_t kLongest = 300;
  constexpr std::int32_t kMostQueries = 32;
  constexpr std::int32_t kFew = 8;
  std::vector<RequestLengths> requests(static_cast<std::size_t>(random.between(1, kMostRequests)));
  for (RequestLengths& request : requests) {
    const std::int32_t edge = page_size * random.between(1, std::max(1, kLongest / page_size / 2));
    switch (random.between(0, 4)) {
      case 0:
        request.keys = random.between(0, 2);
        break;
      case 1:
        request.keys = std::min(kLongest, edge + random.between(-1, 1));
        break;
      default:
        request.keys = random.between(1, kLongest);
    }
    switch (random.between(0, 7)) {
      case 0:
        request.queries = 0;
        break;
      case 1:
        request.queries = std::min(kMostQueries, request.keys + random.between(1, 2));
        break;
      case 2:
        request.queries = std::min(kFew, request.keys);
        break;
      case 3:
        request.queries = random.between(0, std::min(kMostQueries, request.keys));
        break;
      case 4:
        request.queries = std::min(kMostQueries, request.keys);
        break;
      default:
        request.queries = std::min(1, request.keys);
    }
  }
  return requests;
}

std::vector<RequestVerdict> run_check(const CheckBatch& checked, Place& place, Executor* executor) {
  Workbench bench(checked);
  const Attention attention(place.device(), checked.spec, bench.layout().limits(), {executor, {}});
  const WorkspaceSizes sizes = attention.workspace_sizes();
  const DeviceMemory schedule = poisoned(place, sizes.schedule);
  const DeviceMemory scratch = poisoned(place, sizes.scratch);
  Mirror mirror(place);
  const std::string append_complaint = bench.append_new_tokens(mirror, place, executor);
  const Batch batch = mirror.of(bench.batch());
  const CallOptions call{place.stream()};
  attention.schedule(batch, schedule.bytes(), call).throw_if_error();
  attention.run(batch, mirror.of(bench.tensors()), schedule.bytes(), scratch.bytes(), call)
      .throw_if_error();
  mirror.download(bench.tensors().o);
  mirror.download(bench.tensors().lse);
  place.synchronize();

  std::vector<RequestVerdict> verdicts;
  verdicts.reserve(checked.requests.size());
  for (std::size_t seq = 0; seq < checked.requests.size(); ++seq) {
    verdicts.push_back(judge(attention.spec(), bench, seq, checked.requests[seq]));
  }
  for (const std::string& complaint : {append_complaint, judge_padding(attention.spec(), bench)}) {
    if (!complaint.empty() && verdicts.back().complaint.empty()) {
      verdicts.back().complaint = complaint;
    }
  }
  return verdicts;
}

}  // namespace quire::tool
