// SPDX-License-Identifier: Apache-2.0
/// @file
/// `BatchBuilder`: turns sequences of a `PageTable` into the arrays of a `Batch`, laid out in one
/// block of bytes so that a step needs a single upload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "quire/attention.hpp"
#include "quire/error.hpp"
#include "quire/export.h"
#include "quire/page_table.hpp"
#include "quire/tensor.hpp"

namespace quire {
inline namespace v0 {
namespace internal {
struct BatchBuilderState;
}  // namespace internal

/// One request of a step: a sequence whose last `new_tokens` tokens are computed in it.
struct BatchEntry {
  SeqId seq;                    ///< A live sequence of the builder's table.
  std::int32_t new_tokens = 0;  ///< 0…length(seq); `append` has made room for them.

  /// Equal in every field.
  friend bool operator==(const BatchEntry&, const BatchEntry&) = default;
};

/// The sizes of a batch's arrays. The layout of a block depends on them alone: with a fixed shape
/// every step's arrays are at the same addresses, as a captured graph wants them.
struct BatchShape {
  /// As `pages_per_seq` or `total_pages`: the block is without that form of the table.
  static constexpr std::int32_t kOmitted = -1;

  std::int32_t num_seqs = 0;       ///< Rows of the table; requests beyond the entries are empty.
  std::int32_t total_q = 0;        ///< Tokens; slots beyond the entries' tokens are −1.
  std::int32_t pages_per_seq = 0;  ///< Columns of the dense table, or `kOmitted`.
  std::int32_t total_pages = 0;    ///< Entries of `kv_page_indices`, or `kOmitted`.

  /// Equal in every field.
  friend bool operator==(const BatchShape&, const BatchShape&) = default;
};

inline constexpr std::size_t kStagingAlignment =
    16;  ///< Bytes; of the block and of each array in it.

/// A batch in its block. The spans point into the block and live as long as it.
struct StagedBatch {
  BatchShape shape;             ///< Sizes of the arrays below, padding included.
  std::int32_t num_seqs = 0;    ///< Entries; `shape.num_seqs` counts the padding too.
  std::int32_t num_tokens = 0;  ///< New tokens; `shape.total_q` counts the padding too.
  std::int32_t max_q_len = 0;   ///< Most new tokens of an entry.
  std::int32_t max_kv_len = 0;  ///< Longest sequence.

  std::span<const std::byte> bytes;              ///< The part of the block in use: upload this.
  std::span<const std::int32_t> qo_indptr;       ///< [shape.num_seqs + 1]
  std::span<const std::int32_t> kv_len;          ///< [shape.num_seqs], new tokens included
  std::span<const std::int32_t> kv_page_indptr;  ///< [shape.num_seqs + 1], empty if omitted
  std::span<const std::int32_t>
      kv_last_page_len;                        ///< [shape.num_seqs], 0 for a request without pages
  std::span<const std::int32_t> positions;     ///< [shape.total_q] in the sequence; padding 0
  std::span<const std::int64_t> slot_mapping;  ///< [shape.total_q]; padding −1
  std::span<const PageId>
      kv_page_indices;  ///< [shape.total_pages]; holes, and beyond the pages, kNoPage
  std::span<const PageId>
      page_table;  ///< [shape.num_seqs, shape.pages_per_seq], padded with kNoPage

  /// The batch as `Attention` takes it, with the dense table. O(1).
  /// @param base    Where `bytes` was copied to; null takes the block itself.
  /// @param device  Where `base` is.
  [[nodiscard]] QUIRE_API Batch dense(const void* base = nullptr,
                                      Device device = Device::cpu()) const noexcept;
  /// Likewise, with the CSR table.
  [[nodiscard]] QUIRE_API Batch csr(const void* base = nullptr,
                                    Device device = Device::cpu()) const noexcept;
  /// `slot_mapping` as `AppendTensors` takes it.
  [[nodiscard]] QUIRE_API TensorView slots(const void* base = nullptr,
                                           Device device = Device::cpu()) const noexcept;
};

/// Builds batches from the sequences of one table. Allocates at construction only. One owner: calls
/// must not overlap in time, nor with the table's.
class QUIRE_API BatchBuilder {
 public:
  /// A builder for `table`, whose state it keeps alive. @throws Error `kOutOfMemory`.
  explicit BatchBuilder(const PageTable& table);
  /// A moved-from one may only be destroyed or assigned to.
  BatchBuilder(BatchBuilder&&) noexcept;
  BatchBuilder& operator=(BatchBuilder&&) noexcept;  ///< Likewise.
  ~BatchBuilder();

  /// @return Bytes of a block for `shape`, and enough for every shape that is nowhere larger; 0 if
  /// a
  ///   size is out of range. O(1).
  [[nodiscard]] static std::size_t staging_size(const BatchShape& shape) noexcept;

  /// @return The smallest shape that holds the entries, both tables included; otherwise as `build`.
  ///   O(entries + pages of new tokens).
  [[nodiscard]] Result<BatchShape> tight_shape(std::span<const BatchEntry> entries) noexcept;

  /// Writes the entries' arrays into `staging`, with the tight shape. Every byte of
  /// `StagedBatch::bytes` is written. O(entries + tokens + entries of the tables).
  /// @param staging  At least `staging_size(shape)` bytes, aligned to `kStagingAlignment`.
  /// @return `kBadHandle`; `kInvalidArgument` (a sequence twice, new tokens outside 0…length, in a page
  ///   that the sequence shares, or that see what `slide` gave back), `kTooLong` (does not fit the shape, or int32),
  ///   `kWorkspaceTooSmall` (size or alignment). `staging` is untouched then.
  [[nodiscard]] Result<StagedBatch> build(std::span<const BatchEntry> entries,
                                          std::span<std::byte> staging) noexcept;
  /// Likewise, padded to a given shape.
  [[nodiscard]] Result<StagedBatch> build(std::span<const BatchEntry> entries,
                                          const BatchShape& shape,
                                          std::span<std::byte> staging) noexcept;

  /// As `build`, into a block that still holds what the last call of this builder wrote there, with the
  /// same shape: of the tables only what has changed since is written. If the last call wrote elsewhere, or with another
  /// shape, everything is. The bytes are those that `build` writes.
  ///
  /// A decode costs its entries in the arrays by token and by sequence and, once in a page, one entry of
  /// each table; what is behind that in the CSR table, which has no gaps, moves. So do the rows behind a
  /// sequence that has left or joined, in both tables. Only the host's writes are saved: which bytes have
  /// changed is not said, and all of them are to be uploaded. Sequences are best kept in their order: a row that
  /// has changed places with others is written anew.
  /// O(entries + tokens + shape.num_seqs + shape.total_q + entries of the tables that change or move).
  ///
  /// A builder knows one block. With two blocks in turn, so that one can be uploaded while the next is
  /// written, take two builders.
  /// @param staging  As for `build`. Nobody else may have written to the bytes of the last call since.
  /// @return As `build`.
  [[nodiscard]] Result<StagedBatch> update(std::span<const BatchEntry> entries,
                                           const BatchShape& shape,
                                           std::span<std::byte> staging) noexcept;

  /// Finds which entries' tables begin with the same pages, as `Batch` takes it beside the tables, so that
  /// `Attention::schedule()` compares none. Looks at entries that may share, of 1 to 64 new tokens, and at the
  /// whole pages before these. O(entries · log entries + pages of prefixes, for each entry that has them).
  /// @param leaders  Written: `Batch::prefix_leaders`, [kMaxPrefixLevels, num_seqs], −1 beyond the entries;
  ///   num_seqs as in the batch's shape, so at least the entries.
  /// @param pages    Written: `Batch::prefix_pages`, of the same size, 0 where there is no group.
  /// @return As `build`; `kTooLong` if num_seqs is too small, `kInvalidArgument` for other sizes. Both are
  ///   untouched then.
  [[nodiscard]] Status find_prefixes(std::span<const BatchEntry> entries,
                                     std::span<std::int32_t> leaders,
                                     std::span<std::int32_t> pages) noexcept;

 private:
  std::unique_ptr<internal::BatchBuilderState> state_;
};

}  // namespace v0
}  // namespace quire
