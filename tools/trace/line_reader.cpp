// SPDX-License-Identifier: Apache-2.0
#include "trace/line_reader.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>

namespace quire::tool {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{64} << 10;

std::size_t read_some(std::istream& stream, std::vector<char>& to) {
  stream.read(to.data(), static_cast<std::streamsize>(to.size()));
  return static_cast<std::size_t>(stream.gcount());
}

}  // namespace

/// Inflates a stream of gzip members.
class GzipDecoder {
 public:
  GzipDecoder() : input_(kBufferBytes) {
    constexpr int kGzipOnly = 16;
    if (inflateInit2(&state_, MAX_WBITS + kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~GzipDecoder() { inflateEnd(&state_); }
  GzipDecoder(const GzipDecoder&) = delete;
  GzipDecoder& operator=(const GzipDecoder&) = delete;

  /// Hands over bytes that were read to look at.
  void feed(const std::vector<char>& bytes, std::size_t count) {
    std::copy_n(bytes.begin(), count, input_.begin());
    take_input(count);
  }

  /// @return How many bytes were written; 0 at the end, or with `error` set.
  std::size_t read(std::istream& stream, std::vector<char>& to, std::string& error) {
    state_.next_out = reinterpret_cast<Bytef*>(to.data());
    state_.avail_out = static_cast<uInt>(to.size());
    while (state_.avail_out == to.size()) {
      if (state_.avail_in == 0) take_input(read_some(stream, input_));
      if (state_.avail_in == 0) {
        if (!between_members_) error = "expected more compressed data, got the end of the file";
        return 0;
      }
      if (between_members_) inflateReset(&state_);
      const int result = inflate(&state_, Z_NO_FLUSH);
      between_members_ = result == Z_STREAM_END;
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        error = fmt::format("expected gzip data, got damaged data ({})",
                            state_.msg != nullptr ? state_.msg : "unknown format");
        return 0;
      }
    }
    return to.size() - state_.avail_out;
  }

 private:
  void take_input(std::size_t count) {
    state_.next_in = reinterpret_cast<Bytef*>(input_.data());
    state_.avail_in = static_cast<uInt>(count);
  }

  z_stream state_{};
  std::vector<char> input_;
  bool between_members_ = false;
};

LineReader::LineReader(std::istream& stream) : stream_(stream), buffer_(kBufferBytes) {
  constexpr std::string_view kGzipMagic = "\x1f\x8b";
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  const std::size_t count = read_some(stream_, buffer_);
  unread_ = std::string_view(buffer_.data(), count);
  if (unread_.starts_with(kGzipMagic)) {
    gzip_ = std::make_unique<GzipDecoder>();
    gzip_->feed(buffer_, count);
    unread_ = {};
    refill();
  }
  if (unread_.starts_with(kByteOrderMark)) unread_.remove_prefix(kByteOrderMark.size());
}

LineReader::~LineReader() = default;

bool LineReader::refill() {
  const std::size_t count =
      gzip_ != nullptr ? gzip_->read(stream_, buffer_, error_) : read_some(stream_, buffer_);
  unread_ = std::string_view(buffer_.data(), count);
  return count > 0;
}

bool LineReader::next(std::string& line) {
  line.clear();
  if (!error_.empty() || (unread_.empty() && !refill())) return false;
  ++number_;
  for (;;) {
    const std::size_t end = unread_.find('\n');
    line += unread_.substr(0, end);
    unread_.remove_prefix(end == std::string_view::npos ? unread_.size() : end + 1);
    if (line.size() > kLongestLine) {
      error_ = fmt::format("expected lines of at most {} bytes", kLongestLine);
      return false;
    }
    if (end != std::string_view::npos || !refill()) break;
  }
  if (line.ends_with('\r')) line.pop_back();
  // A line that the damage of a file cut short is not a line.
  return error_.empty();
}

}  // namespace quire::tool
