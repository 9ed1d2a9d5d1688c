// SPDX-License-Identifier: Apache-2.0
/// @file
/// Who holds the pages of a pool at one moment.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "quire/batcher.hpp"
#include "quire/page_table.hpp"

namespace quire::tool {

/// The pages of a pool at one moment.
struct PageMap {
  static constexpr std::int32_t kFree = -1;    ///< Nothing refers to it.
  static constexpr std::int32_t kOthers = -2;  ///< In use, but by no running request.

  /// A running request.
  struct Owner {
    std::uint64_t request = 0;
    std::int32_t tokens = 0;  ///< In cache.
    friend bool operator==(const Owner&, const Owner&) = default;
  };
  struct Page {
    std::int32_t owner = kFree;  ///< Index of an owner: of a shared page, the first that has it.
    std::int32_t tokens = 0;     ///< In the page, of whoever has most of it.
    std::int32_t refs = 0;
    friend bool operator==(const Page&, const Page&) = default;
  };

  std::uint64_t step = 0;
  double time_s = 0;
  std::int32_t page_size = 1;
  std::vector<Owner> owners;  ///< By id.
  std::vector<Page> pages;    ///< By page id.

  friend bool operator==(const PageMap&, const PageMap&) = default;

  [[nodiscard]] std::int32_t num_used() const;
  [[nodiscard]] std::int32_t num_shared() const;  ///< With more than one reference.
  /// @return Positions of the owners' pages without a token in them.
  [[nodiscard]] std::int64_t wasted_positions() const;
};

/// Knows the sequences of the running requests of a batcher.
class RunningRequests {
 public:
  /// After the commit of a plan.
  void committed(const StepPlan& plan);
  /// After the finish of its step.
  void finished(std::span<const std::uint64_t> ended);

  /// @return The map of the table's pool. O(pages + table entries).
  [[nodiscard]] PageMap map(const PageTable& table) const;
  [[nodiscard]] const std::unordered_map<std::uint64_t, SeqId>& sequences() const { return seqs_; }

 private:
  std::unordered_map<std::uint64_t, SeqId> seqs_;
};

/// @return The map as one JSON object, free pages left out.
std::string page_map_json(const PageMap& map);
/// @param name  Of the file, for the errors.
/// @throws CommandError (usage) with what was expected of the text and what came.
PageMap parse_page_map(std::string_view text, std::string_view name);

}  // namespace quire::tool
