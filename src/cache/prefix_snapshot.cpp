// SPDX-License-Identifier: Apache-2.0
// The index of a prefix cache as bytes, least significant first:
//
//   header   u64 magic, u32 version, u32 page_size, u32 records, u32 zero
//   records  u64 name_space, u32 parent's record or ~0, u32 page, u32 tier, u32 tokens, u32 priority,
//            u64 time_to_live, u64 time since the last use, u32 token…
//   end      u64 FNV-1a of all before
//
// Records are ordered from the most to the least recently used, so that parents come first.
#include <algorithm>
#include <exception>
#include <tuple>
#include <utility>

#include "cache/failure.hpp"
#include "cache/prefix_cache_state.hpp"
#include "cache/prefix_hash.hpp"

namespace quire {
inline namespace v0 {
namespace {

using cache::failure;
using internal::kNoNode;
using internal::NodeId;
using internal::PrefixCacheState;
using internal::PrefixRun;

constexpr std::uint64_t kMagic = 0x7866705f65726971U;  // "qire_pfx"
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kNoRecord = 0xffffffffU;
constexpr std::size_t kEndBytes = sizeof(std::uint64_t);
constexpr unsigned kBitsPerByte = 8;

std::uint64_t fnv1a(std::span<const std::byte> bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : bytes) {
    hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  }
  return hash;
}

template <typename Number>
void write(std::vector<std::byte>& bytes, Number number) {
  for (unsigned byte = 0; byte < sizeof(number); ++byte) {
    bytes.push_back(static_cast<std::byte>(number >> (kBitsPerByte * byte)));
  }
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) noexcept : left_(bytes) {}

  // Zero beyond the end, which `ok` remembers.
  template <typename Number>
  Number read() noexcept {
    if (left_.size() < sizeof(Number)) {
      ok_ = false;
      left_ = {};
      return 0;
    }
    Number number = 0;
    for (unsigned byte = 0; byte < sizeof(Number); ++byte) {
      number |= static_cast<Number>(left_[byte]) << (kBitsPerByte * byte);
    }
    left_ = left_.subspan(sizeof(Number));
    return number;
  }
  [[nodiscard]] bool ok() const noexcept { return ok_; }
  [[nodiscard]] std::size_t left() const noexcept { return left_.size(); }

 private:
  std::span<const std::byte> left_;
  bool ok_ = true;
};

struct Record {
  std::uint64_t name_space = 0;
  std::uint32_t parent = kNoRecord;
  PageId saved = kNoPage;
  std::uint32_t tier = 0;
  std::uint32_t num_tokens = 0;
  Retention retention;
  std::int64_t unused_for = 0;
  std::size_t first_token = 0;
};

struct Records {
  std::vector<Record> records;
  std::vector<std::int32_t> tokens;
};

Status damaged(const char* what) noexcept {
  return failure(ErrorCode::kInvalidArgument,
                 "[prefix_cache] restore: expected the bytes of a saved index, got {}", what);
}

Record read_record(Reader& reader) noexcept {
  Record record;
  record.name_space = reader.read<std::uint64_t>();
  record.parent = reader.read<std::uint32_t>();
  record.saved = static_cast<PageId>(reader.read<std::uint32_t>());
  record.tier = reader.read<std::uint32_t>();
  record.num_tokens = reader.read<std::uint32_t>();
  record.retention.priority = static_cast<std::int32_t>(reader.read<std::uint32_t>());
  record.retention.time_to_live = static_cast<std::int64_t>(reader.read<std::uint64_t>());
  record.unused_for = static_cast<std::int64_t>(reader.read<std::uint64_t>());
  return record;
}

bool sound(const Record& record, std::span<const Record> before, std::uint32_t page_size) noexcept {
  if (record.num_tokens < 1 || record.num_tokens > page_size || record.saved < 0 ||
      record.tier >= internal::kNumTiers) {
    return false;
  }
  if (record.retention.priority < 0 || record.retention.priority > Retention::kMaxPriority ||
      record.retention.time_to_live < 0 || record.unused_for < 0) {
    return false;
  }
  if (record.parent == kNoRecord) return true;
  if (record.parent >= before.size()) return false;
  const Record& parent = before[record.parent];
  return parent.num_tokens == page_size && parent.name_space == record.name_space &&
         parent.tier <= record.tier;
}

// Everything that can be seen without the index. Takes memory in proportion to the bytes.
Status parse(std::span<const std::byte> bytes, const PagePoolSpec& pool, Records& out) {
  if (bytes.size() < kEndBytes) return damaged("too few");
  const std::span<const std::byte> body = bytes.first(bytes.size() - kEndBytes);
  Reader end(bytes.last(kEndBytes));
  if (end.read<std::uint64_t>() != fnv1a(body)) return damaged("damaged ones");
  Reader reader(body);
  if (reader.read<std::uint64_t>() != kMagic) return damaged("those of something else");
  if (reader.read<std::uint32_t>() != kVersion) return damaged("those of another version");
  const auto page_size = reader.read<std::uint32_t>();
  if (std::cmp_not_equal(page_size, pool.page_size)) {
    return failure(ErrorCode::kInvalidArgument,
                   "[prefix_cache] restore: expected pages of {} tokens, got pages of {}",
                   pool.page_size, page_size);
  }
  const auto count = reader.read<std::uint32_t>();
  if (reader.read<std::uint32_t>() != 0) return damaged("damaged ones");
  while (out.records.size() < count && reader.ok()) {
    Record record = read_record(reader);
    if (!sound(record, out.records, page_size)) return damaged("a page that cannot be");
    record.first_token = out.tokens.size();
    for (std::uint32_t i = 0; i < record.num_tokens && reader.ok(); ++i) {
      out.tokens.push_back(static_cast<std::int32_t>(reader.read<std::uint32_t>()));
    }
    out.records.push_back(record);
  }
  return reader.ok() && reader.left() == 0 ? Status() : damaged("another number of bytes");
}

// Puts the records into the index; those of the host as long as there is room, and none behind one that
// has found none. If two siblings turn out to be the same, all go out again.
Status insert_all(PrefixCacheState& cache, const Records& saved,
                  std::vector<RestoredPage>& pages) noexcept {
  const auto count = static_cast<std::uint64_t>(saved.records.size());
  for (std::size_t index = 0; index < count; ++index) {
    const Record& record = saved.records[index];
    const auto tier = static_cast<PageTier>(record.tier);
    pages[index] = {record.saved, kNoPage, 0, tier};
    if (tier == PageTier::kHost && (!cache.has_host() || cache.at(tier).pool->num_free == 0)) {
      continue;
    }
    NodeId parent = kNoNode;
    if (record.parent != kNoRecord) {
      const RestoredPage& before = pages[record.parent];
      parent = cache.at(before.tier).node_of(before.page);
      if (parent == kNoNode) continue;
    }
    const PrefixRun run{record.name_space,
                        std::span(saved.tokens).subspan(record.first_token, record.num_tokens)};
    const std::uint64_t before = parent == kNoNode
                                     ? cache::hash_root(cache.spec.hash_seed, record.name_space)
                                     : cache.node(parent).hash;
    const std::uint64_t hash = cache::hash_run(before, run.tokens);
    if (cache.find(parent, hash, run) != kNoNode) {
      while (index-- > 0) {
        const NodeId id = cache.at(pages[index].tier).node_of(pages[index].page);
        if (id != kNoNode) cache.remove(id);
      }
      return damaged("the same page twice");
    }
    const PageId page = cache.at(tier).pool->take();
    const NodeId id = cache.insert(page, parent, hash, run, tier);
    cache.at(tier).pool->drop_ref(page);  // the index' own is left
    PrefixCacheState::Node& node = cache.node(id);
    node.priority = record.retention.priority;
    node.time_to_live = record.retention.time_to_live;
    node.last_use = cache.clock + count - index;
    node.last_time = cache.now - record.unused_for;
    cache.enlist(id);
    pages[index] = {record.saved, page, node.num_tokens, tier};
  }
  cache.clock += count;
  std::erase_if(pages, [](const RestoredPage& page) { return page.page == kNoPage; });
  return {};
}

void write_record(std::vector<std::byte>& bytes, const PrefixCacheState& cache, NodeId id,
                  std::uint32_t parent) {
  const PrefixCacheState::Node& node = cache.node(id);
  write(bytes, node.name_space);
  write(bytes, parent);
  write(bytes, static_cast<std::uint32_t>(node.page));
  write(bytes, static_cast<std::uint32_t>(node.tier));
  write(bytes, static_cast<std::uint32_t>(node.num_tokens));
  write(bytes, static_cast<std::uint32_t>(node.priority));
  write(bytes, static_cast<std::uint64_t>(node.time_to_live));
  const bool long_ago = node.last_time < cache.now - PrefixCacheState::kEnd;
  write(bytes,
        static_cast<std::uint64_t>(long_ago ? PrefixCacheState::kEnd : cache.now - node.last_time));
  for (const std::int32_t token : cache.tokens_of(id)) {
    write(bytes, static_cast<std::uint32_t>(token));
  }
}

std::vector<std::byte> bytes_of(const PrefixCacheState& cache) {
  std::vector<NodeId> ids;
  for (std::size_t id = 0; id < cache.nodes.size(); ++id) {
    if (cache.nodes[id].num_tokens > 0) ids.push_back(static_cast<NodeId>(id));
  }
  // Parents come before their children, as they are used after them.
  std::ranges::sort(ids, std::ranges::greater(), [&](NodeId id) {
    const PrefixCacheState::Node& node = cache.node(id);
    return std::tuple(node.last_use, node.tier, node.page);
  });
  std::vector<std::uint32_t> record_of(cache.nodes.size(), kNoRecord);
  std::vector<std::byte> bytes;
  write(bytes, kMagic);
  write(bytes, kVersion);
  write(bytes, static_cast<std::uint32_t>(cache.page_size()));
  write(bytes, static_cast<std::uint32_t>(ids.size()));
  write(bytes, std::uint32_t{0});
  std::uint32_t record = 0;
  for (const NodeId id : ids) {
    record_of[static_cast<std::size_t>(id)] = record++;
    const NodeId parent = cache.node(id).parent;
    write_record(bytes, cache, id,
                 parent == kNoNode ? kNoRecord : record_of[static_cast<std::size_t>(parent)]);
  }
  write(bytes, fnv1a(bytes));
  return bytes;
}

Status no_memory(const char* call) noexcept {
  return failure(ErrorCode::kOutOfMemory, "[prefix_cache] {}: expected memory for a copy, got none",
                 call);
}

}  // namespace

Status PrefixCache::save(std::vector<std::byte>& bytes) const noexcept {
  try {
    bytes = bytes_of(*state_);
    return {};
  } catch (const std::exception&) {
    return no_memory("save");
  }
}

Status PrefixCache::restore(std::span<const std::byte> bytes,
                            std::vector<RestoredPage>& pages) noexcept {
  PrefixCacheState& cache = *state_;
  if (cache.announcing || cache.stats.pages > 0 || cache.stats.host_pages > 0) {
    return failure(ErrorCode::kInvalidArgument,
                   "[prefix_cache] restore: expected an empty index and no call by a listener, got "
                   "{} pages",
                   cache.stats.pages + cache.stats.host_pages);
  }
  try {
    Records saved;
    Status status = parse(bytes, cache.pool->spec, saved);
    if (!status.ok()) return status;
    const auto needed = std::ranges::count(
        saved.records, static_cast<std::uint32_t>(PageTier::kDevice), &Record::tier);
    if (needed > cache.pool->num_free) {
      return failure(ErrorCode::kOutOfPages,
                     "[prefix_cache] restore: expected {} free pages, got {}", needed,
                     cache.pool->num_free);
    }
    std::vector<RestoredPage> restored(saved.records.size());
    status = insert_all(cache, saved, restored);
    if (!status.ok()) return status;
    pages = std::move(restored);
  } catch (const std::exception&) {
    return no_memory("restore");
  }
  cache.stats.stored += cache.stats.pages;
  for (const RestoredPage& restored : pages) {
    cache.announce(PrefixEvent::Kind::kStored, cache.at(restored.tier).node_of(restored.page));
  }
  return {};
}

}  // namespace v0
}  // namespace quire
