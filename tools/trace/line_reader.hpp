// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <istream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace quire::tool {

class GzipDecoder;

/// Reads lines of a stream, inflating it if it begins as a gzip file does. Ends of lines may be LF
/// or CRLF. Memory does not depend on the stream: lines longer than `kLongestLine` are an error.
class LineReader {
 public:
  static constexpr std::size_t kLongestLine = std::size_t{1} << 20;  ///< Bytes.

  explicit LineReader(std::istream& stream);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// @return False at the end of the stream, or where nothing more can be read (`error`).
  bool next(std::string& line);
  /// @return Number of the line that was read last, from 1.
  [[nodiscard]] std::int64_t number() const noexcept { return number_; }
  /// @return What was expected where reading stopped; empty at the end of the stream.
  [[nodiscard]] const std::string& error() const noexcept { return error_; }

 private:
  bool refill();

  std::istream& stream_;
  std::unique_ptr<GzipDecoder> gzip_;
  std::vector<char> buffer_;
  std::string_view unread_;
  std::int64_t number_ = 0;
  std::string error_;
};

}  // namespace quire::tool
