// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <sstream>
#include <string>
#include <variant>

#include "trace/line.hpp"
#include "trace/line_reader.hpp"
#include "trace/reader.hpp"

namespace quire::tool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kAzure =
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n";

constexpr std::string_view kMooncake =
    "{\"timestamp\": 3000, \"input_length\": 6758, \"output_length\": 500, \"hash_ids\": [0, 1]}\n"
    "{\"timestamp\": 6000, \"input_length\": 7322, \"output_length\": 490, \"hash_ids\": [0, "
    "14]}\n";

TraceReading read(std::string_view text, std::size_t limit = 0) {
  std::istringstream stream{std::string(text)};
  return read_trace(stream, "trace", limit);
}

std::string gzip(std::string_view text) {
  z_stream state{};
  EXPECT_EQ(deflateInit2(&state, Z_BEST_SPEED, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY),
            Z_OK);
  std::string out(text.size() + 128, '\0');
  std::string in(text);
  state.next_in = reinterpret_cast<Bytef*>(in.data());
  state.avail_in = static_cast<uInt>(in.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&state, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - state.avail_out);
  deflateEnd(&state);
  return out;
}

std::string azure_complaint(std::string_view line) {
  const ParsedLine parsed = parse_azure_line(line);
  const auto* text = std::get_if<std::string>(&parsed);
  return text != nullptr ? *text : "parsed";
}

std::string mooncake_complaint(std::string_view line) {
  const ParsedLine parsed = parse_mooncake_line(line);
  const auto* text = std::get_if<std::string>(&parsed);
  return text != nullptr ? *text : "parsed";
}

TEST(Trace, ReadsAzureRequestsWithArrivalsFromTheFirst) {
  const TraceReading trace = read(kAzure);
  EXPECT_THAT(trace.errors, IsEmpty());
  EXPECT_EQ(trace.format, "Azure LLM inference CSV");
  ASSERT_EQ(trace.requests.size(), 2U);
  EXPECT_EQ(trace.requests[0], (TraceRequest{0, 374, 44}));
  EXPECT_NEAR(trace.requests[1].arrival_s, 4.314579, 1e-5);
  EXPECT_EQ(trace.requests[1].input_tokens, 396);
  EXPECT_EQ(trace.requests[1].output_tokens, 109);
}

TEST(Trace, ReadsMooncakeRequestsInSeconds) {
  const TraceReading trace = read(kMooncake);
  EXPECT_THAT(trace.errors, IsEmpty());
  EXPECT_EQ(trace.format, "Mooncake JSONL");
  EXPECT_THAT(trace.requests,
              ElementsAre(TraceRequest{0, 6758, 500, {0, 1}}, TraceRequest{3, 7322, 490, {0, 14}}));
}

TEST(Trace, LineEndsBlankLinesAndAByteOrderMarkDoNotMatter) {
  std::string text = "\xef\xbb\xbf";
  for (const char c : kAzure) text += c == '\n' ? "\r\n" : std::string(1, c);
  text += "\r\n   \r\n";
  EXPECT_EQ(read(text).requests, read(kAzure).requests);
  EXPECT_THAT(read(text).errors, IsEmpty());
}

TEST(Trace, TheLastLineNeedsNoEnd) {
  const TraceReading trace = read(kMooncake.substr(0, kMooncake.size() - 1));
  EXPECT_THAT(trace.errors, IsEmpty());
  EXPECT_EQ(trace.requests.size(), 2U);
}

TEST(Trace, RequestsAreOrderedByArrival) {
  const TraceReading trace = read(
      "TIMESTAMP,ContextTokens,GeneratedTokens\n"
      "2023-12-31 23:59:59,2,2\n"
      "2023-12-31 23:59:58.5,1,1\n"
      "2024-01-01 00:00:00,3,3\n");
  EXPECT_THAT(trace.requests,
              ElementsAre(TraceRequest{0, 1, 1}, TraceRequest{0.5, 2, 2}, TraceRequest{1.5, 3, 3}));
}

TEST(Trace, ALimitStopsReadingBeforeWhatFollows) {
  const TraceReading trace = read(std::string(kAzure) + "rubbish\n", 2);
  EXPECT_EQ(trace.requests.size(), 2U);
  EXPECT_THAT(trace.errors, IsEmpty());
}

TEST(Trace, ReadsGzipInOneOrSeveralMembers) {
  const TraceReading plain = read(kAzure);
  EXPECT_EQ(read(gzip(kAzure)).requests, plain.requests);
  const TraceReading members = read(gzip(kAzure.substr(0, 60)) + gzip(kAzure.substr(60)));
  EXPECT_EQ(members.requests, plain.requests);
  EXPECT_THAT(members.errors, IsEmpty());
}

TEST(Trace, TruncatedGzipIsAnErrorAtItsLine) {
  std::string many(kMooncake);
  for (int i = 0; i < 12; ++i) many += many;
  const std::string whole = gzip(many);
  const TraceReading trace = read(whole.substr(0, whole.size() - 9));
  ASSERT_EQ(trace.errors.size(), 1U);
  EXPECT_THAT(trace.errors[0],
              testing::MatchesRegex("trace:[0-9]+: expected more compressed data, got the end of "
                                    "the file"));
}

TEST(Trace, DamagedGzipIsAnError) {
  std::string damaged = gzip(kAzure);
  damaged[damaged.size() - 5] = static_cast<char>(damaged[damaged.size() - 5] ^ 0x55);
  const TraceReading trace = read(damaged);
  ASSERT_EQ(trace.errors.size(), 1U);
  EXPECT_THAT(trace.errors[0], HasSubstr("expected gzip data, got damaged data"));
  EXPECT_THAT(read("\x1f\x8b rubbish").errors, ElementsAre(HasSubstr("expected gzip data")));
}

TEST(Trace, AnUnknownFormatIsNamedWithItsFirstLine) {
  EXPECT_THAT(read("a,b\n1,2\n").errors,
              ElementsAre("trace:1: expected the header TIMESTAMP,ContextTokens,GeneratedTokens or "
                          "a JSON object, got \"a,b\""));
  EXPECT_THAT(read(std::string("\0\x01\xff", 3)).errors,
              ElementsAre(HasSubstr("\"\\x00\\x01\\xff\"")));
}

TEST(Trace, EachBadLineIsReportedWithItsNumber) {
  const TraceReading trace = read(std::string(kAzure) + "x\n2023-11-16 18:15:46,5,5\ny\n");
  ASSERT_EQ(trace.errors.size(), 2U);
  EXPECT_THAT(trace.errors[0], testing::StartsWith("trace:4: expected 3 fields"));
  EXPECT_THAT(trace.errors[1], testing::StartsWith("trace:6: expected 3 fields"));
  EXPECT_EQ(trace.requests.size(), 3U);
}

TEST(Trace, ReportsStopAfterTheFirstErrors) {
  std::string text(kAzure);
  for (int i = 0; i < 1000; ++i) text += "x\n";
  EXPECT_EQ(read(text).errors.size(), TraceReading::kMostErrors);
}

TEST(Trace, AnEndlessLineIsAnErrorNotAllMemory) {
  const TraceReading trace = read(std::string(kAzure) + std::string(3 << 20, 'x'));
  EXPECT_THAT(trace.errors, ElementsAre("trace:4: expected lines of at most 1048576 bytes"));
}

TEST(Trace, AnEmptyStreamHasNoRequestsAndNoErrors) {
  EXPECT_THAT(read("").requests, IsEmpty());
  EXPECT_THAT(read("").errors, IsEmpty());
  EXPECT_THAT(read(gzip("")).errors, IsEmpty());
}

TEST(AzureLine, EachFieldSaysWhatWasExpected) {
  EXPECT_EQ(azure_complaint("2023-11-16 18:15:46.6805900,374"),
            "expected 3 fields TIMESTAMP,ContextTokens,GeneratedTokens, got 2: "
            "\"2023-11-16 18:15:46.6805900,374\"");
  EXPECT_EQ(azure_complaint("2023-11-16 18:15:46,1,2,3"),
            "expected 3 fields TIMESTAMP,ContextTokens,GeneratedTokens, got 4: "
            "\"2023-11-16 18:15:46,1,2,3\"");
  EXPECT_EQ(azure_complaint("yesterday,1,2"),
            "TIMESTAMP: expected YYYY-MM-DD HH:MM:SS.fraction, got \"yesterday\"");
  EXPECT_EQ(azure_complaint("2023-11-16 18:15:46,-1,2"),
            "ContextTokens: expected a whole number from 1 to 16777216, got \"-1\"");
  EXPECT_EQ(azure_complaint("2023-11-16 18:15:46,1,99999999999999999999"),
            "GeneratedTokens: expected a whole number from 0 to 16777216, got "
            "\"99999999999999999999\"");
}

TEST(AzureLine, RefusesTimesThatAreNone) {
  for (const char* time : {"2023-13-01 00:00:00", "2023-02-30 00:00:00", "2023-11-16 24:00:00",
                           "2023-11-16T18:15:46", "2023-11-16 18:15:46.", "2023-11-16 18:15:46.x",
                           "2023-11-16 18:15:46.1234567890", "2023-11-16 18:15", ""}) {
    EXPECT_THAT(azure_complaint(std::string(time) + ",1,1"), HasSubstr("TIMESTAMP: expected"))
        << time;
  }
  EXPECT_EQ(azure_complaint("2024-05-10 00:00:00.009930+00:00,1,1"), "parsed");
}

TEST(MooncakeLine, EachMemberSaysWhatWasExpected) {
  EXPECT_EQ(mooncake_complaint("{\"timestamp\": 0"),
            "expected a JSON object with timestamp, input_length and output_length, got "
            "\"{\"timestamp\": 0\"");
  EXPECT_THAT(mooncake_complaint("[1, 2]"), HasSubstr("expected a JSON object"));
  EXPECT_EQ(mooncake_complaint("{\"timestamp\": 0, \"output_length\": 1}"),
            "input_length: expected a whole number from 1 to 16777216, got nothing");
  EXPECT_EQ(mooncake_complaint("{\"timestamp\": 0, \"input_length\": \"7\", \"output_length\": 1}"),
            "input_length: expected a whole number from 1 to 16777216, got \"\"7\"\"");
  EXPECT_EQ(mooncake_complaint("{\"timestamp\": -1, \"input_length\": 7, \"output_length\": 1}"),
            "timestamp: expected a whole number from 0 to 1000000000000000, got \"-1\"");
  EXPECT_THAT(
      mooncake_complaint(
          "{\"timestamp\": 0, \"input_length\": 18446744073709551615, \"output_length\": 1}"),
      HasSubstr("input_length: expected"));
  EXPECT_THAT(mooncake_complaint("{\"timestamp\": 0, \"input_length\": 1.5, \"output_length\": 1}"),
              HasSubstr("input_length: expected"));
}

TEST(MooncakeLine, BlocksAreWholeNumbersIfThereAreAny) {
  const std::string line = "{\"timestamp\": 0, \"input_length\": 7, \"output_length\": 1";
  EXPECT_THAT(std::get<TraceRequest>(parse_mooncake_line(line + "}")).blocks, IsEmpty());
  const std::string expected =
      "hash_ids: expected a list of whole numbers from 0 to 4294967295, got ";
  EXPECT_EQ(mooncake_complaint(line + ", \"hash_ids\": 3}"), expected + "number");
  EXPECT_EQ(mooncake_complaint(line + ", \"hash_ids\": [1, -1]}"), expected + "\"-1\" among them");
  EXPECT_EQ(mooncake_complaint(line + ", \"hash_ids\": [4294967296]}"),
            expected + "\"4294967296\" among them");
  EXPECT_EQ(mooncake_complaint(line + ", \"hash_ids\": [1.5]}"), expected + "\"1.5\" among them");
}

TEST(MooncakeLine, SurvivesDeepNestingAndBrokenText) {
  EXPECT_THAT(mooncake_complaint(std::string(100000, '[')), HasSubstr("expected a JSON object"));
  EXPECT_THAT(mooncake_complaint("{\"timestamp\": \"\xff\xfe\"}"), HasSubstr("expected"));
  const std::string nested =
      "{\"timestamp\": " + std::string(1000, '[') + std::string(1000, ']') + "}";
  EXPECT_THAT(mooncake_complaint(nested), HasSubstr("timestamp: expected"));
}

TEST(LineReader, ReadsLinesAcrossItsBuffer) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::string(static_cast<std::size_t>(i % 97), 'a') + "\n";
  std::istringstream stream(text);
  LineReader reader(stream);
  std::string line;
  int count = 0;
  while (reader.next(line)) {
    EXPECT_EQ(line.size(), static_cast<std::size_t>(count % 97));
    ++count;
  }
  EXPECT_EQ(count, 5000);
  EXPECT_EQ(reader.number(), 5000);
}

}  // namespace
}  // namespace quire::tool
