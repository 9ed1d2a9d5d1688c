// SPDX-License-Identifier: Apache-2.0
// Serves requests around a toy model: pages, prefix cache, continuous batching, attention. It does so
// twice, with many pages and with so few that requests lose theirs and compute them again: the
// answers are the same.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "quire/attention.hpp"
#include "quire/batch_builder.hpp"
#include "quire/batcher.hpp"
#include "quire/copies.hpp"
#include "quire/page_pool.hpp"
#include "quire/page_table.hpp"
#include "quire/prefix_cache.hpp"

namespace {

using quire::DType;
using Floats = std::vector<float>;
using Tokens = std::vector<std::int32_t>;
struct alignas(quire::kWorkspaceAlignment) Block {  // of a workspace
  std::byte bytes[quire::kWorkspaceAlignment];
};

constexpr int kHeads = 4, kKvHeads = 2, kDim = 16;
constexpr std::size_t kVocabulary = 97, kWidth = kHeads * kDim, kKvWidth = kKvHeads * kDim;
constexpr int kPageSize = 8, kMaxSeqs = 8, kMaxTokens = 48, kMaxLength = 256;

void check(const quire::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}

template <typename T>
T value_of(quire::Result<T> result) {
  check(result.status());
  return *result;
}

/// rows [rows, inner] times weights [inner, columns].
Floats product(const Floats& rows, const Floats& weights, std::size_t inner) {
  const std::size_t columns = weights.size() / inner, count = rows.size() / inner;
  Floats result(count * columns);
  for (std::size_t row = 0; row < count; ++row) {
    for (std::size_t i = 0; i < inner; ++i) {
      const float factor = rows[row * inner + i];
      for (std::size_t c = 0; c < columns; ++c) {
        result[row * columns + c] += factor * weights[i * columns + c];
      }
    }
  }
  return result;
}

/// One layer of attention on random weights: what a real model has many of, and more around.
struct Model {
  Model() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (Floats* each : {&embedding, &q, &k, &v, &output}) {
      for (float& weight : *each) weight = normal(random) / std::sqrt(float(kWidth));
    }
  }
  /// What enters the layer: [tokens, kWidth].
  [[nodiscard]] Floats embed(const Tokens& tokens, std::span<const std::int32_t> positions) const {
    Floats x;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::size_t i = 0; i < kWidth; ++i) {
        const float wave =
            std::sin(float(positions[t]) / std::pow(50.0F, float(i) / float(kWidth)));
        x.push_back(8 * embedding[std::size_t(tokens[t]) * kWidth + i] + wave);
      }
    }
    return x;
  }

  Floats embedding = Floats(kVocabulary * kWidth), output = Floats(kWidth * kVocabulary);
  Floats q = Floats(kWidth * kWidth), k = Floats(kWidth * kKvWidth), v = Floats(kWidth * kKvWidth);
};

quire::AttentionSpec attention_spec() {
  quire::AttentionSpec spec{.num_qo_heads = kHeads, .num_kv_heads = kKvHeads, .head_dim_qk = kDim};
  spec.q_dtype = spec.kv_dtype = DType::kFloat32;
  spec.page_size = kPageSize;
  return spec;
}

/// Who has which page, who computes what, and the calls of a step.
class Engine {
 public:
  Engine(const Model& model, int num_pages)
      : model_(model),
        k_memory_(std::size_t(num_pages) * kPageSize * kKvWidth),
        v_memory_(k_memory_.size()),
        k_cache_(k_memory_.data(), DType::kFloat32, {num_pages, kPageSize, kKvHeads, kDim}),
        v_cache_(v_memory_.data(), DType::kFloat32, {num_pages, kPageSize, kKvHeads, kDim}),
        pool_({.num_pages = num_pages, .page_size = kPageSize}),
        table_(pool_, {.max_seqs = kMaxSeqs, .max_tokens_per_seq = kMaxLength}),
        cache_(pool_),
        batcher_(table_, cache_),
        builder_(table_),
        attention_(quire::Device::cpu(), attention_spec(),
                   {.max_num_seqs = kMaxSeqs, .max_total_q = kMaxTokens, .max_kv_len = kMaxLength}),
        schedule_(attention_.workspace_sizes().schedule / sizeof(Block) + 1),
        scratch_(attention_.workspace_sizes().scratch / sizeof(Block) + 1) {}

  void submit(std::uint64_t id, const Tokens& prompt, std::int32_t max_new_tokens) {
    texts_[id] = prompt;
    check(batcher_.submit({.id = id,
                           .prompt_tokens = std::int32_t(prompt.size()),
                           .max_new_tokens = max_new_tokens,
                           .prompt = prompt}));
  }

  /// Serves until nothing waits and nothing runs. @return Prompts and answers, by id.
  const std::map<std::uint64_t, Tokens>& serve() {
    while (!batcher_.idle()) step();
    return texts_;
  }
  [[nodiscard]] quire::BatcherStats stats() const { return batcher_.stats(); }

 private:
  void step() {
    check(batcher_.plan({.max_tokens = kMaxTokens, .max_seqs = kMaxSeqs}, plan_));
    copies_.clear();
    check(batcher_.commit(plan_, copies_));
    const quire::CopyTensors caches[] = {{.dst = k_cache_}, {.dst = v_cache_}};
    check(quire::execute_copies(quire::Device::cpu(), quire::KvLayout::kNHD, copies_, caches));
    staging_.resize(quire::BatchBuilder::staging_size(value_of(builder_.tight_shape(plan_.batch))));
    const quire::StagedBatch batch = value_of(builder_.build(plan_.batch, staging_));

    Tokens tokens;
    for (const quire::StepItem& item : plan_.items) {
      const auto first = texts_[item.request].begin() + item.position;
      tokens.insert(tokens.end(), first, first + item.num_new_tokens);
    }
    const Floats o = layer(batch, model_.embed(tokens, batch.positions));
    const Floats logits = product(o, model_.output, kWidth);

    Tokens sampled;
    for (std::size_t i = 0; i < plan_.items.size(); ++i) {
      if (!plan_.items[i].samples) continue;
      const auto row = logits.begin() + (batch.qo_indptr[i + 1] - 1) * std::ptrdiff_t(kVocabulary);
      sampled.push_back(
          std::int32_t(std::max_element(row, row + std::ptrdiff_t(kVocabulary)) - row));
      texts_[plan_.items[i].request].push_back(sampled.back());
    }
    std::vector<std::uint64_t> ended;
    check(batcher_.finish(plan_, sampled, {}, ended));
  }

  /// Writes keys and values of new tokens to their pages and attends: x + o, [tokens, kWidth].
  Floats layer(const quire::StagedBatch& staged, Floats x) {
    const auto rows = std::int64_t(x.size() / kWidth);
    Floats q = product(x, model_.q, kWidth), o(q.size());
    Floats k = product(x, model_.k, kWidth), v = product(x, model_.v, kWidth);
    quire::AppendTensors append;
    append.k = {k.data(), DType::kFloat32, {rows, kKvHeads, kDim}};
    append.v = {v.data(), DType::kFloat32, {rows, kKvHeads, kDim}};
    append.k_cache = k_cache_;
    append.v_cache = v_cache_;
    append.slot_mapping = staged.slots();
    check(quire::append(quire::Device::cpu(), quire::KvLayout::kNHD, {}, append));

    quire::AttentionTensors tensors;
    tensors.q = {q.data(), DType::kFloat32, {rows, kHeads, kDim}};
    tensors.k = k_cache_;
    tensors.v = v_cache_;
    tensors.o = {o.data(), DType::kFloat32, {rows, kHeads, kDim}};
    const quire::Batch batch = staged.dense();
    const std::span schedule = std::as_writable_bytes(std::span(schedule_));
    const std::span scratch = std::as_writable_bytes(std::span(scratch_));
    check(attention_.schedule(batch, schedule));
    check(attention_.run(batch, tensors, schedule, scratch));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += o[i];
    return x;
  }

  const Model& model_;
  Floats k_memory_, v_memory_;
  quire::MutableTensorView k_cache_, v_cache_;
  quire::PagePool pool_;
  quire::PageTable table_;
  quire::PrefixCache cache_;
  quire::Batcher batcher_;
  quire::BatchBuilder builder_;
  quire::Attention attention_;
  std::vector<Block> schedule_, scratch_;
  std::vector<std::byte> staging_;
  quire::StepPlan plan_;
  std::vector<quire::CopyOp> copies_;
  std::map<std::uint64_t, Tokens> texts_;
};

}  // namespace

int main() {
  const Model model;
  std::map<std::uint64_t, Tokens> answers[2];
  for (const int few : {0, 1}) {
    Engine engine(model, few ? 12 : 96);
    for (std::int32_t id = 0; id < 8; ++id) {
      Tokens prompt(20);  // what all prompts begin with
      std::iota(prompt.begin(), prompt.end(), 3);
      prompt.resize(prompt.size() + 2 + 5 * std::size_t(id), 50 + id);
      engine.submit(std::uint64_t(id), prompt, 16);
    }
    answers[few] = engine.serve();
    const quire::BatcherStats stats = engine.stats();
    std::printf("%d requests, %d of %d tokens shared, %s\n", int(stats.finished),
                int(stats.hit_tokens), int(stats.asked_tokens),
                stats.preemptions > 0 ? "some preempted" : "none preempted");
  }
  std::printf("the answers are %s\n", answers[0] == answers[1] ? "equal" : "different");
}
