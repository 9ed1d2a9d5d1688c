// SPDX-License-Identifier: Apache-2.0
// Page pools, page tables and copy plans through the C ABI: any order of calls, with ids that are
// alive, dead and made up. A table of lengths says what must come out; the library's own check must
// hold after every call; a token that was written must be found again, whatever was forked; a block of
// bytes that is updated from batch to batch must be what a build makes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "fuzz/bytes.hpp"
#include "quire/quire.h"
#include "quire/serving.h"

namespace quire::fuzz {
namespace {

constexpr std::int32_t kMaxSeqs = 6;
constexpr quire_device kCpu = {QUIRE_DEVICE_CPU, 0};

/// What a sequence must look like: the number that was written to each of its tokens.
struct Expected {
  quire_seq_id id = {0, 0};
  bool alive = false;
  std::vector<std::int64_t> written;
  std::int32_t holes = 0;
};

class Tables {
 public:
  Tables(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {
    num_pages_ = bytes_.between(1, 24);
    page_size_ = bytes_.between(1, 5);
    max_tokens_ = bytes_.between(1, 40);
    window_ = bytes_.between(-1, 8);
    quire_page_pool_spec pool_spec = QUIRE_PAGE_POOL_SPEC_INIT;
    pool_spec.num_pages = num_pages_;
    pool_spec.page_size = page_size_;
    quire_page_table_spec table_spec = QUIRE_PAGE_TABLE_SPEC_INIT;
    table_spec.max_seqs = kMaxSeqs;
    table_spec.max_tokens_per_seq = max_tokens_;
    table_spec.window_left = window_;
    require(quire_page_pool_create(&pool_spec, &pool_) == QUIRE_OK);
    require(quire_page_table_create(pool_, &table_spec, &table_) == QUIRE_OK);
    require(quire_copy_plan_create(&copies_) == QUIRE_OK);
    require(quire_batch_builder_create(table_, &updater_) == QUIRE_OK);
    require(quire_batch_builder_create(table_, &builder_) == QUIRE_OK);
    const std::int32_t columns = (max_tokens_ + page_size_ - 1) / page_size_;
    shape_ = {kMaxSeqs, 0, columns, kMaxSeqs * columns};
    updated_.resize(quire_staging_size(shape_) / sizeof(std::max_align_t));
    built_.resize(updated_.size());
    cache_.assign(static_cast<std::size_t>(num_pages_ * page_size_), -1);
  }
  ~Tables() {
    quire_copy_plan_destroy(copies_);
    quire_batch_builder_destroy(builder_);
    quire_batch_builder_destroy(updater_);
    quire_page_table_destroy(table_);
    std::sort(own_.begin(), own_.end());
    const auto own = std::unique(own_.begin(), own_.end()) - own_.begin();
    require(quire_page_pool_num_used(pool_) == own);
    quire_page_pool_destroy(pool_);
  }
  Tables(const Tables&) = delete;
  Tables& operator=(const Tables&) = delete;

  void run() {
    while (!bytes_.empty()) {
      step();
      require(quire_page_table_check(table_) == QUIRE_OK);
      for (const Expected& seq : seqs_) expect(seq);
    }
  }

 private:
  void step() {
    switch (bytes_.between(0, 11)) {
      case 0:
        create();
        break;
      case 1:
      case 2:
        append();
        break;
      case 3:
        fork();
        break;
      case 4:
        truncate();
        break;
      case 5:
        destroy();
        break;
      case 6:
        allocate();
        break;
      case 7:
        release();
        break;
      case 8:
        accept_tree();
        break;
      case 9:
        slide();
        break;
      case 10:
        update();
        break;
      default:
        made_up();
    }
  }

  /// A sequence that may be dead; null if there never was one.
  Expected* any() {
    if (seqs_.empty()) return nullptr;
    return &seqs_[bytes_.take<std::uint8_t>() % seqs_.size()];
  }

  /// Whole pages before the first token that a query at a position sees.
  [[nodiscard]] std::int32_t unseen(std::int32_t position) const {
    return window_ < 0 ? 0 : std::max(0, position - window_) / page_size_;
  }

  void slide() {
    Expected* seq = any();
    if (seq == nullptr) return;
    const std::int32_t position = bytes_.once_in(16) ? bytes_.edge() : bytes_.between(0, 40);
    const bool fits =
        seq->alive && position >= 0 && position <= static_cast<std::int32_t>(seq->written.size());
    require((quire_page_table_slide(table_, seq->id, position) == QUIRE_OK) == fits);
    if (fits) seq->holes = std::max(seq->holes, unseen(position));
  }

  /// A batch of some sequences, in the order that the bytes say.
  void update() {
    std::vector<quire_batch_entry> entries;
    for (const Expected& seq : seqs_) {
      if (seq.alive && bytes_.between(0, 7) > 0) entries.push_back({seq.id, 0});
    }
    if (entries.size() > 1 && bytes_.once_in(3)) {
      std::swap(entries.front(), entries[bytes_.take<std::uint8_t>() % entries.size()]);
    }
    quire_staged_batch updated = QUIRE_STAGED_BATCH_INIT;
    quire_staged_batch built = QUIRE_STAGED_BATCH_INIT;
    const std::size_t size = quire_staging_size(shape_);
    require(size <= updated_.size() * sizeof(std::max_align_t));
    require(quire_batch_builder_update(updater_, entries.data(), entries.size(), &shape_,
                                       updated_.data(), size, &updated) == QUIRE_OK);
    require(quire_batch_builder_build(builder_, entries.data(), entries.size(), &shape_,
                                      built_.data(), size, &built) == QUIRE_OK);
    require(std::memcmp(updated_.data(), built_.data(), size) == 0);
  }

  void add(quire_seq_id id, std::vector<std::int64_t> written, std::int32_t holes = 0) {
    if (seqs_.size() > 64) seqs_.erase(std::find_if(seqs_.begin(), seqs_.end(), is_dead));
    seqs_.push_back({id, true, std::move(written), holes});
  }
  static bool is_dead(const Expected& seq) { return !seq.alive; }

  [[nodiscard]] std::int32_t alive() const {
    return static_cast<std::int32_t>(seqs_.size()) -
           static_cast<std::int32_t>(std::count_if(seqs_.begin(), seqs_.end(), is_dead));
  }

  void create() {
    quire_seq_id id = {0, 0};
    const quire_status status = quire_page_table_create_seq(table_, &id);
    require(status == (alive() == kMaxSeqs ? QUIRE_QUEUE_FULL : QUIRE_OK));
    if (status == QUIRE_OK) add(id, {});
  }

  void append() {
    Expected* seq = any();
    if (seq == nullptr) return;
    const std::int32_t n = bytes_.once_in(16) ? bytes_.edge() : bytes_.between(0, 9);
    const std::int32_t needed = quire_page_table_pages_needed(table_, seq->id, n);
    const std::int32_t free = quire_page_pool_num_free(pool_);
    require(quire_copy_plan_clear(copies_) == QUIRE_OK);
    const quire_status status = quire_page_table_append(table_, seq->id, n, copies_);
    require((status == QUIRE_OK) == (needed >= 0 && needed <= free));
    if (status != QUIRE_OK) return;
    require(quire_page_pool_num_free(pool_) == free - needed);
    execute_copies();
    for (std::int32_t i = 0; i < n; ++i) {
      const std::int64_t slot =
          quire_page_table_slot(table_, seq->id, static_cast<std::int32_t>(seq->written.size()));
      require(slot >= 0 && slot < static_cast<std::int64_t>(cache_.size()));
      cache_[static_cast<std::size_t>(slot)] = ++last_written_;
      seq->written.push_back(last_written_);
    }
  }

  void execute_copies() {
    const std::int64_t shape[] = {num_pages_, page_size_, 1, 1};
    const quire_copy_tensors cache = {
        quire_tensor_packed(cache_.data(), QUIRE_INT64, kCpu, 4, shape), QUIRE_TENSOR_NONE};
    require(quire_execute_copies(kCpu, QUIRE_LAYOUT_NHD, quire_copy_plan_ops(copies_),
                                 quire_copy_plan_size(copies_), &cache, 1, nullptr) == QUIRE_OK);
  }

  void fork() {
    const Expected* seq = any();
    if (seq == nullptr) return;
    const std::int32_t length = bytes_.once_in(16) ? bytes_.edge() : bytes_.between(0, 12);
    quire_seq_id id = {0, 0};
    const quire_status status = quire_page_table_fork_seq(table_, seq->id, length, &id);
    const bool fits = seq->alive && length >= 0 &&
                      length <= static_cast<std::int32_t>(seq->written.size()) &&
                      unseen(length) >= seq->holes;
    require((status == QUIRE_OK) == (fits && alive() < kMaxSeqs));
    if (status != QUIRE_OK) return;
    add(id, {seq->written.begin(), seq->written.begin() + length}, seq->holes);
  }

  void truncate() {
    Expected* seq = any();
    if (seq == nullptr) return;
    const std::int32_t length = bytes_.once_in(16) ? bytes_.edge() : bytes_.between(0, 12);
    const bool fits = seq->alive && length >= 0 &&
                      length <= static_cast<std::int32_t>(seq->written.size()) &&
                      unseen(length) >= seq->holes;
    require((quire_page_table_truncate(table_, seq->id, length) == QUIRE_OK) == fits);
    if (fits) seq->written.resize(static_cast<std::size_t>(length));
  }

  /// Refused only for what is wrong: that a page is shared shows only if something moves.
  void accept_tree() {
    Expected* seq = any();
    if (seq == nullptr) return;
    const std::int32_t length = bytes_.once_in(16) ? bytes_.edge() : bytes_.between(0, 12);
    std::vector<std::int32_t> path;
    std::int32_t token = -1;
    for (std::int32_t left = bytes_.between(0, 6); left > 0; --left) {
      token += bytes_.once_in(16) ? 0 : bytes_.between(1, 3);
      path.push_back(token);
    }
    require(quire_copy_plan_clear(copies_) == QUIRE_OK);
    const quire_status status =
        quire_page_table_accept_tree(table_, seq->id, length, path.data(), path.size(), copies_);
    const auto written = static_cast<std::int32_t>(seq->written.size());
    const bool grows =
        std::adjacent_find(path.begin(), path.end(), std::greater_equal<>()) == path.end();
    const bool fits = seq->alive && length >= 0 && length <= written &&
                      unseen(length) >= seq->holes &&
                      (path.empty() || (path[0] >= 0 && path.back() < written - length)) && grows;
    require(fits || status != QUIRE_OK);
    if (status != QUIRE_OK) {
      require(quire_copy_plan_size(copies_) == 0);
      return;
    }
    execute_copies();
    std::vector<std::int64_t> kept(seq->written.begin(), seq->written.begin() + length);
    for (const std::int32_t each : path) {
      kept.push_back(seq->written[static_cast<std::size_t>(length + each)]);
    }
    seq->written = std::move(kept);
  }

  void destroy() {
    Expected* seq = any();
    if (seq == nullptr) return;
    const std::int32_t reclaimable = quire_page_table_reclaimable_pages(table_, seq->id);
    const std::int32_t free = quire_page_pool_num_free(pool_);
    const quire_status status = quire_page_table_destroy_seq(table_, seq->id);
    require(status == (seq->alive ? QUIRE_OK : QUIRE_BAD_HANDLE));
    if (status == QUIRE_OK) require(quire_page_pool_num_free(pool_) == free + reclaimable);
    seq->alive = false;
    seq->written.clear();
  }

  void allocate() {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(bytes_.between(0, 3)), -7);
    const bool enough = quire_page_pool_num_free(pool_) >= static_cast<std::int32_t>(pages.size());
    const quire_status status = quire_page_pool_allocate(pool_, pages.data(), pages.size());
    require(status == (enough ? QUIRE_OK : QUIRE_OUT_OF_PAGES));
    if (enough) {
      own_.insert(own_.end(), pages.begin(), pages.end());
    } else {
      require(std::count(pages.begin(), pages.end(), -7) ==
              static_cast<std::ptrdiff_t>(pages.size()));
    }
  }

  void release() {
    if (own_.empty() || bytes_.once_in(4)) {
      std::int32_t pages[] = {bytes_.between(-1, 24), bytes_.edge()};
      // Never ours to give back twice; a page of a table is refused as well.
      if (std::find(own_.begin(), own_.end(), pages[0]) == own_.end()) {
        require(quire_page_pool_release(pool_, pages, 2) == QUIRE_BAD_HANDLE);
      }
      return;
    }
    const std::int32_t page = own_.back();
    if (bytes_.once_in(3)) {
      require(quire_page_pool_retain(pool_, &page, 1) == QUIRE_OK);
      own_.push_back(page);
      return;
    }
    require(quire_page_pool_release(pool_, &page, 1) == QUIRE_OK);
    own_.pop_back();
  }

  /// Ids and pages that nobody handed out, and plans for caches of another shape.
  void made_up() {
    const quire_seq_id id = {bytes_.take<std::uint32_t>(), bytes_.take<std::uint32_t>()};
    const bool known = std::any_of(seqs_.begin(), seqs_.end(), [&](const Expected& seq) {
      return seq.alive && seq.id.slot == id.slot && seq.id.generation == id.generation;
    });
    if (!known) {
      require(quire_page_table_length(table_, id) == -1);
      require(quire_page_table_slot(table_, id, bytes_.edge()) == -1);
      require(quire_page_table_append(table_, id, 1, copies_) == QUIRE_BAD_HANDLE);
      require(quire_page_table_destroy_seq(table_, id) == QUIRE_BAD_HANDLE);
    }
    quire_page_pool_ref_count(pool_, bytes_.edge());
    const quire_copy_op op = {bytes_.between(-1, 25), bytes_.between(-1, 25), bytes_.edge(),
                              bytes_.between(-1, 6), bytes_.between(-1, 6)};
    std::vector<std::int64_t> other(cache_.size());
    const std::int64_t shape[] = {num_pages_, page_size_, 1, 1};
    quire_copy_tensors cache = {quire_tensor_packed(other.data(), QUIRE_INT64, kCpu, 4, shape),
                                QUIRE_TENSOR_NONE};
    cache.dst.shape[bytes_.between(0, 3)] = bytes_.between(0, 1);
    if (bytes_.between(0, 1) == 1) {
      cache.src = quire_tensor_packed(cache_.data(), QUIRE_INT64, kCpu, 4, shape);
    }
    quire_execute_copies(kCpu, bytes_.between(-1, 2), &op, 1, &cache, 1, nullptr);
  }

  void expect(const Expected& seq) {
    const auto length = static_cast<std::int32_t>(seq.written.size());
    require(quire_page_table_length(table_, seq.id) == (seq.alive ? length : -1));
    for (std::int32_t position = 0; position < length; ++position) {
      const std::int64_t slot = quire_page_table_slot(table_, seq.id, position);
      require((slot == -1) == (position / page_size_ < seq.holes));
      if (slot == -1) continue;
      require(slot >= 0 && slot < static_cast<std::int64_t>(cache_.size()));
      require(cache_[static_cast<std::size_t>(slot)] ==
              seq.written[static_cast<std::size_t>(position)]);
    }
  }

  Bytes bytes_;
  std::int32_t num_pages_ = 0;
  std::int32_t page_size_ = 0;
  std::int32_t window_ = -1;
  std::int32_t max_tokens_ = 0;
  quire_page_pool* pool_ = nullptr;
  quire_page_table* table_ = nullptr;
  quire_copy_plan* copies_ = nullptr;
  quire_batch_builder* updater_ = nullptr;
  quire_batch_builder* builder_ = nullptr;
  quire_batch_shape shape_ = {0, 0, 0, 0};
  std::vector<std::max_align_t> updated_;
  std::vector<std::max_align_t> built_;
  std::vector<Expected> seqs_;
  std::vector<std::int32_t> own_;
  std::vector<std::int64_t> cache_;
  std::int64_t last_written_ = 0;
};

}  // namespace
}  // namespace quire::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 4096) return 0;
  quire::fuzz::Tables(data, size).run();
  return 0;
}
