// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace quire::tool {

/// Rows of text under headings. A heading that begins with '>' aligns its column to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> headings);
  /// @param cells  As many as there are headings.
  void add(std::vector<std::string> cells);
  /// @return Columns padded with blanks, for a terminal.
  [[nodiscard]] std::string text() const;
  /// @return A table as Markdown has it.
  [[nodiscard]] std::string markdown() const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace quire::tool
