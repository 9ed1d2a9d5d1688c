// SPDX-License-Identifier: Apache-2.0
// Prefix caches: any order of calls against the oracle of tests/cache/checked_cache.hpp, which throws
// where the two differ; and any bytes as a saved index.
#include <cstdint>
#include <vector>

#include "cache/checked_cache.hpp"
#include "fuzz/bytes.hpp"

namespace quire::fuzz {
namespace {

// Bytes that no index was saved as must leave an empty cache empty.
void restore_anything(Bytes& bytes) {
  PagePool pool({.num_pages = 8, .page_size = 2});
  PrefixCache cache(pool);
  std::vector<std::byte> saved;
  require(cache.save(saved).ok());
  saved.resize(saved.size() - sizeof(std::uint64_t));
  while (!bytes.empty()) saved.push_back(static_cast<std::byte>(bytes.take<std::uint8_t>()));
  saved[16] = saved.back();                  // how many records
  std::uint64_t hash = 0xcbf29ce484222325U;  // FNV-1a: else nothing behind it would be reached
  for (const std::byte byte : saved) {
    hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  }
  for (unsigned i = 0; i < 8; ++i) saved.push_back(static_cast<std::byte>(hash >> (8 * i)));
  std::vector<RestoredPage> pages;
  const Status status = cache.restore(saved, pages);
  require(cache.check().ok());
  require(cache.stats().pages == static_cast<std::int32_t>(pages.size()));
  require(status.ok() || pages.empty());
}

}  // namespace
}  // namespace quire::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 4096) return 0;
  quire::fuzz::Bytes bytes(data, size);
  if (bytes.once_in(4)) {
    quire::fuzz::restore_anything(bytes);
    return 0;
  }
  quire::test::CheckedCache cache(
      [&bytes](std::int32_t limit) { return bytes.take<std::uint8_t>() % limit; });
  for (int calls = 0; calls < 400 && !bytes.empty(); ++calls) cache.step();
  return 0;
}
