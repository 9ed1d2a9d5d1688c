// SPDX-License-Identifier: Apache-2.0
#include "workloads.hpp"

#include <algorithm>
#include <numeric>
#include <random>

namespace ladder {
namespace {

constexpr int kSparePages = 7;        // that no table names
constexpr int kRubbish = 0x7ffffff0;  // an entry that must not be followed
constexpr std::uint64_t kSeed = 20261127;

/// Takes pages in a random order, as a pool gives them after some hours of service.
class ShuffledPages {
 public:
  explicit ShuffledPages(int count) : ids_(static_cast<std::size_t>(count)) {
    std::iota(ids_.begin(), ids_.end(), 0);
    std::mt19937_64 random(kSeed);
    std::shuffle(ids_.begin(), ids_.end(), random);
  }
  int take() {
    const int id = ids_.back();
    ids_.pop_back();
    return id;
  }

 private:
  std::vector<int> ids_;
};

/// A request to be: its keys, and how many of its first pages are those of an earlier request.
struct Wish {
  int seq_len = 0;
  int shared_pages = 0;
  int with = -1;  // the earlier request
};

void fill_table(Workload& workload, const std::vector<Wish>& wishes) {
  int own_pages = 0;
  for (const Wish& wish : wishes) {
    own_pages += pages_of(wish.seq_len) - wish.shared_pages;
    workload.max_blocks = std::max(workload.max_blocks, pages_of(wish.seq_len) + 1);
  }
  workload.num_pages = own_pages + kSparePages;
  ShuffledPages pages(workload.num_pages);
  const auto entries = static_cast<std::size_t>(workload.max_blocks);
  workload.page_table.assign(wishes.size() * entries, kRubbish);
  for (std::size_t request = 0; request < wishes.size(); ++request) {
    const Wish& wish = wishes[request];
    for (int page = 0; page < pages_of(wish.seq_len); ++page) {
      const auto entry = static_cast<std::size_t>(page);
      workload.page_table[request * entries + entry] =
          page < wish.shared_pages
              ? workload.page_table[static_cast<std::size_t>(wish.with) * entries + entry]
              : pages.take();
    }
  }
}

Workload make(std::string name, std::string description, int num_kv_heads,
              const std::vector<Wish>& wishes) {
  Workload workload{.name = std::move(name), .description = std::move(description)};
  workload.num_kv_heads = num_kv_heads;
  workload.num_qo_heads = num_kv_heads * kGroup;
  fill_table(workload, wishes);
  // Rows of Q in another order than the requests.
  std::vector<int> rows(wishes.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::mt19937_64 random(kSeed + 1);
  std::shuffle(rows.begin(), rows.end(), random);
  for (std::size_t request = 0; request < wishes.size(); ++request) {
    workload.requests.push_back({.q_start = rows[request],
                                 .seq_len = wishes[request].seq_len,
                                 .kv_page_start = static_cast<int>(request) * workload.max_blocks});
  }
  return workload;
}

Workload make_long(bool quick) {
  const int batch = quick ? 8 : 32;
  const int tokens = quick ? 2048 : 16384;
  std::vector<Wish> wishes;
  for (int request = 0; request < batch; ++request) wishes.push_back({tokens - 5 * request});
  return make("long",
              std::to_string(batch) + " requests of about " + std::to_string(tokens) +
                  " keys, 32 query heads, 8 kv heads",
              8, wishes);
}

Workload make_shared(bool quick) {
  const int batch = quick ? 20 : 64;
  const int prompt = quick ? 1536 : 8192;
  const int own = quick ? 64 : 256;
  std::vector<Wish> wishes{{prompt + own}};
  for (int request = 1; request < batch; ++request) {
    wishes.push_back({prompt + own - request % 50, prompt / kPageSize, 0});
  }
  return make("shared",
              std::to_string(batch) + " requests on one prompt of " + std::to_string(prompt) +
                  " keys, about " + std::to_string(own) +
                  " of their own, 32 query heads, 8 kv heads",
              8, wishes);
}

/// Lengths around the edges of pages (16), look-ups (32 pages) and tiles (64 keys), no keys at all,
/// and prefixes of all kinds: a part of a page's worth, all that a request has, of different lengths.
Workload make_odd() {
  std::vector<Wish> wishes;
  for (const int seq_len : {0,   1,   2,   15,  16,  17,  31,  32,  33,  47,  48,   49,  63,
                            64,  65,  79,  80,  81,  100, 127, 128, 129, 191, 192,  193, 255,
                            256, 257, 300, 511, 512, 513, 527, 528, 529, 700, 1023, 1025}) {
    wishes.push_back({seq_len});
  }
  const int source = 35;  // the request of 700 keys
  for (const int seq_len : {336, 337, 350, 351, 352, 353, 400, 699, 1100}) {
    wishes.push_back({seq_len, 21, source});
  }
  wishes.push_back({16, 1, 28});  // the request of 300 keys, and one that has no key of its own
  wishes.push_back({1040, 64, 37});
  for (int i = 0; i < 20; ++i)
    wishes.push_back({1024 + 13 * i, 64, 37});  // more than a block packs
  return make("odd",
              std::to_string(wishes.size()) +
                  " requests of 0 to 1,271 keys, some sharing pages, 8 query heads, "
                  "2 kv heads",
              2, wishes);
}

}  // namespace

std::int64_t Workload::distinct_tokens() const {
  std::vector<int> tokens(static_cast<std::size_t>(num_pages), 0);  // read of each page
  for (const RequestInfo& request : requests) {
    for (int page = 0; page < pages_of(request.seq_len); ++page) {
      const int id = page_table[static_cast<std::size_t>(request.kv_page_start + page)];
      int& read = tokens[static_cast<std::size_t>(id)];
      read = std::max(read, std::min(kPageSize, request.seq_len - page * kPageSize));
    }
  }
  return std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});
}

std::vector<Workload> make_workloads(bool quick) {
  return {make_long(quick), make_shared(quick), make_odd()};
}

Workload with_one_head(Workload workload) {
  workload.num_qo_heads = 1;
  workload.num_kv_heads = 1;
  return workload;
}

}  // namespace ladder
