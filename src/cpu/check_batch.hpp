// SPDX-License-Identifier: Apache-2.0
/// @file
/// The values of a batch: lengths, offsets, page ids. Shapes and dtypes were checked before.
#pragma once

#include <string>
#include <string_view>

#include "core/problem.hpp"
#include "quire/attention.hpp"

namespace quire::cpu {

/// Who asks, and where the first offence is noted.
struct CheckContext {
  std::string_view operation;     ///< begins the sentence, e.g. "schedule"
  CheckRecord* record = nullptr;  ///< may be null

  /// @return The failure with its sentence; fills the record, unless an earlier offence is there.
  [[nodiscard]] Status refuse(const CheckRecord& found, const std::string& sentence,
                              ErrorCode code = ErrorCode::kInvalidArgument) const;
};

/// Checks offsets and lengths against one another and against the limits. O(num_seqs).
Status check_batch(const CheckContext& context, const core::ProblemShape& shape,
                   const BatchLimits& limits, const core::BatchArrays& batch);

/// Checks what is said of shared prefixes, after `check_batch`. O(pages of prefixes, for each request).
Status check_groups(const CheckContext& context, const core::ProblemShape& shape,
                    const BatchLimits& limits, const core::BatchArrays& batch,
                    const core::PrefixGroups& groups);

/// Checks that `tensor`, of so many rows, has one for every new token of the batch.
Status check_rows(const CheckContext& context, const core::BatchArrays& batch,
                  std::string_view tensor, std::int64_t rows);

/// Checks what the tensors of a layer must be able to hold: the rows of q, and the ids of exactly
/// those pages (or the rows of K and V) that will be read. O(pages read).
Status check_layer(const CheckContext& context, const core::ProblemShape& shape,
                   const core::BatchArrays& batch, const core::LayerTensors& tensors);

/// Checks the ids of the pages that keys [begin, end) of a request lie in.
Status check_pages(const CheckContext& context, const core::ProblemShape& shape,
                   const core::BatchArrays& batch, std::int32_t seq, std::int32_t begin,
                   std::int32_t end, std::int64_t num_pages);

}  // namespace quire::cpu
