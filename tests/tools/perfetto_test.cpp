// SPDX-License-Identifier: Apache-2.0
#include "replay/perfetto.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "common/protobuf.hpp"
#include "replay/engine.hpp"

namespace quire::tool {
namespace {

TEST(ProtoMessage, IsWrittenAsTheEncodingsOwnExamples) {
  EXPECT_EQ(ProtoMessage().integer(1, 150).bytes(), "\x08\x96\x01");
  EXPECT_EQ(ProtoMessage().text(2, "testing").bytes(), "\x12\x07testing");
  EXPECT_EQ(ProtoMessage().message(3, ProtoMessage().integer(1, 150)).bytes(),
            "\x1a\x03\x08\x96\x01");
  EXPECT_EQ(ProtoMessage().integer(1, static_cast<std::uint64_t>(-2)).bytes(),
            "\x08\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
}

/// A message taken apart: integers and texts by field.
struct Message {
  std::map<std::uint64_t, std::vector<std::uint64_t>> integers;
  std::map<std::uint64_t, std::vector<std::string>> texts;

  [[nodiscard]] std::uint64_t integer(std::uint64_t field) const {
    return integers.contains(field) ? integers.at(field).back() : 0;
  }
  [[nodiscard]] bool has(std::uint64_t field) const { return texts.contains(field); }
};

std::uint64_t read_varint(const std::string& bytes, std::size_t& at) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes.at(at++));
    value |= std::uint64_t{byte & 0x7fU} << shift;
    if (byte < 0x80) return value;
  }
}

Message read_message(const std::string& bytes) {
  Message message;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::uint64_t key = read_varint(bytes, at);
    const std::uint64_t value = read_varint(bytes, at);
    if ((key & 7U) == 0) {
      message.integers[key >> 3].push_back(value);
      continue;
    }
    EXPECT_EQ(key & 7U, 2U);
    message.texts[key >> 3].push_back(bytes.substr(at, value));
    at += value;
  }
  return message;
}

std::vector<Message> packets_of(const Recorder& recorder) {
  std::ostringstream out;
  write_perfetto(out, recorder);
  const Message trace = read_message(out.str());
  std::vector<Message> packets;
  for (const std::string& packet : trace.texts.at(1)) {
    packets.push_back(read_message(packet));
  }
  return packets;
}

constexpr std::uint64_t kTrackEvent = 11;
constexpr std::uint64_t kType = 9;
constexpr std::uint64_t kTrackUuid = 11;

/// Two requests, the second of which waits for the first.
Recorder two_requests() {
  Recorder recorder({.max_events = 64, .max_steps = 8, .max_ended = 4, .max_requests = 4});
  StepPlan plan;
  recorder.submitted({5, 10, 2, 1.0}, 1.0);
  recorder.submitted({6, 8, 1, 1.5}, 1.5);
  plan.items = {{5, 0, {}, 0, 10, 1, true, true, true}};
  recorder.committed(plan, {.waiting = 1, .running = 1, .used_pages = 3}, 2.0);
  recorder.finished({}, 3.0);
  plan.step = 1;
  plan.items = {{5, 0, {}, 10, 1, 1, false, true, false}, {6, 1, {}, 0, 8, 1, true, true, true}};
  recorder.committed(plan, {.waiting = 0, .running = 2, .used_pages = 5}, 3.0);
  recorder.finished(std::vector<std::uint64_t>{5, 6}, 4.0);
  return recorder;
}

TEST(Perfetto, EverySliceThatBeginsEndsOnItsTrack) {
  std::map<std::uint64_t, std::vector<std::uint64_t>> open;
  std::size_t slices = 0;
  for (const Message& packet : packets_of(two_requests())) {
    if (!packet.has(kTrackEvent)) continue;
    const Message event = read_message(packet.texts.at(kTrackEvent)[0]);
    std::vector<std::uint64_t>& stack = open[event.integer(kTrackUuid)];
    if (event.integer(kType) == 1) {
      stack.push_back(packet.integer(8));
      ++slices;
    }
    if (event.integer(kType) == 2) {
      ASSERT_FALSE(stack.empty());
      EXPECT_LE(stack.back(), packet.integer(8));
      stack.pop_back();
    }
  }
  for (const auto& [track, stack] : open) EXPECT_TRUE(stack.empty()) << track;
  // 2 steps; request 5: itself, waiting, prefill, decode; request 6: itself, waiting, prefill.
  EXPECT_EQ(slices, 2 + 4 + 3);
}

TEST(Perfetto, TimesAreNanosecondsAndCountersOnlyChanges) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> waiting;
  for (const Message& packet : packets_of(two_requests())) {
    if (!packet.has(kTrackEvent)) continue;
    const Message event = read_message(packet.texts.at(kTrackEvent)[0]);
    if (event.integer(kType) != 4 || event.integer(kTrackUuid) != 13) continue;
    waiting.emplace_back(packet.integer(8), event.integer(30));
  }
  EXPECT_THAT(waiting,
              testing::ElementsAre(std::pair{2'000'000'000U, 1U}, std::pair{3'000'000'000U, 0U}));
}

TEST(Perfetto, RequestsShareALaneOnlyOneAfterTheOther) {
  std::vector<RequestRecord> lives(4);
  const double submitted[] = {0, 1, 2, 5};
  const double finished[] = {2, 6, 4, 7};
  for (std::size_t i = 0; i < lives.size(); ++i) {
    lives[i].submitted = submitted[i];
    lives[i].finished = finished[i];
  }
  EXPECT_THAT(lanes_of(lives), testing::ElementsAre(0, 1, 0, 0));
}

}  // namespace
}  // namespace quire::tool
