// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quire::tool {

/// Writes a message in the wire format of Protocol Buffers
/// (https://protobuf.dev/programming-guides/encoding): fields in the order of the calls.
class ProtoMessage {
 public:
  /// A field of an integer type, bool or enum. Negative numbers as int64.
  ProtoMessage& integer(std::uint32_t field, std::uint64_t value) {
    varint(std::uint64_t{field} << kTypeBits | kVarint);
    varint(value);
    return *this;
  }
  /// A field of type string or bytes.
  ProtoMessage& text(std::uint32_t field, std::string_view value) {
    varint(std::uint64_t{field} << kTypeBits | kLengthDelimited);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  /// A field that is a message.
  ProtoMessage& message(std::uint32_t field, const ProtoMessage& value) {
    return text(field, value.bytes_);
  }

  [[nodiscard]] const std::string& bytes() const { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  static constexpr int kTypeBits = 3;
  static constexpr std::uint64_t kVarint = 0;
  static constexpr std::uint64_t kLengthDelimited = 2;

  // Seven bits a byte, the lowest first; the top bit says that more follow.
  void varint(std::uint64_t value) {
    constexpr std::uint64_t kMore = 0x80;
    constexpr int kBits = 7;
    for (; value >= kMore; value >>= kBits)
      bytes_ += static_cast<char>((value & (kMore - 1)) | kMore);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

}  // namespace quire::tool
