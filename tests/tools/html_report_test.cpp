// SPDX-License-Identifier: Apache-2.0
#include "replay/html_report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "common/base64.hpp"

namespace quire::tool {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

std::string base64_of_text(const std::string& text) {
  return base64(std::as_bytes(std::span<const char>(text)));
}

TEST(Base64, GivesTheVectorsOfItsStandard) {
  EXPECT_EQ(base64_of_text(""), "");
  EXPECT_EQ(base64_of_text("f"), "Zg==");
  EXPECT_EQ(base64_of_text("fo"), "Zm8=");
  EXPECT_EQ(base64_of_text("foo"), "Zm9v");
  EXPECT_EQ(base64_of_text("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64_of_text("\xfb\xff\xfe"), "+//+");
}

/// The inverse, for texts without errors.
template <typename T>
std::vector<T> numbers(const json& text) {
  const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  std::uint32_t bits = 0;
  int num_bits = 0;
  for (const char letter : text.get<std::string>()) {
    if (letter == '=') break;
    bits = bits << 6 | static_cast<std::uint32_t>(letters.find(letter));
    num_bits += 6;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(bits >> num_bits & 0xff);
  }
  std::vector<T> found(bytes.size() / sizeof(T));
  std::memcpy(found.data(), bytes.data(), found.size() * sizeof(T));
  return found;
}

ReplayOptions recorded() {
  ReplayOptions options;
  options.attention = false;
  options.arrivals = Arrivals::kTrace;
  options.pages = 40;
  options.max_tokens_per_step = 64;
  options.max_seqs = 8;
  options.keep_steps = options.keep_pages = true;
  return options;
}

ReplayReport run(const ReplayOptions& options) {
  std::vector<TraceRequest> requests;
  for (std::int32_t i = 0; i < 60; ++i) requests.push_back({0.01 * i, 20 + i * 7 % 90, 5 + i % 60});
  return replay(options, requests, [](double, const BatcherStats&) {});
}

TEST(HtmlReport, HasEveryStepAndRequest) {
  const ReplayReport report = run(recorded());
  ASSERT_GT(report.batcher.preemptions, 0);
  const json data = report_data(recorded(), report, "a trace");
  EXPECT_EQ(data.at("steps").at("perGroup"), 1);
  const auto prefill = numbers<float>(data.at("steps").at("prefill"));
  ASSERT_EQ(prefill.size(), static_cast<std::size_t>(report.batcher.steps));
  EXPECT_EQ(std::accumulate(prefill.begin(), prefill.end(), 0.0), report.batcher.prefill_tokens);
  const auto preempted = numbers<float>(data.at("steps").at("preempted"));
  EXPECT_EQ(std::accumulate(preempted.begin(), preempted.end(), 0.0), report.batcher.preemptions);
  const json& requests = data.at("requests");
  EXPECT_EQ(requests.at("n"), 60);
  const auto submitted = numbers<double>(requests.at("submitted"));
  EXPECT_TRUE(std::is_sorted(submitted.begin(), submitted.end()));
  const auto from = numbers<std::uint32_t>(requests.at("eventFrom"));
  ASSERT_EQ(from.size(), 61);
  const auto kind = numbers<std::uint8_t>(data.at("events").at("kind"));
  const auto tokens = numbers<std::uint32_t>(data.at("events").at("tokens"));
  ASSERT_EQ(kind.size(), from.back());
  std::int64_t decoded = 0;
  for (std::size_t i = 0; i < kind.size(); ++i) {
    if (kind[i] == static_cast<std::uint8_t>(EventKind::kDecode)) decoded += tokens[i];
  }
  EXPECT_EQ(decoded, report.batcher.decode_tokens);
  EXPECT_EQ(data.at("hasCache"), false) << "no hit rate without a cache";
  EXPECT_EQ(data.at("losses"), "");
}

TEST(HtmlReport, ItsPageMapsAreThoseOfTheRun) {
  const ReplayReport report = run(recorded());
  const json data = report_data(recorded(), report, "a trace");
  const PageMap& fullest = report.pages->fullest();
  const json& map = data.at("maps").at(data.at("fullest").get<std::size_t>());
  EXPECT_EQ(map.at("step"), fullest.step);
  const auto owner = numbers<std::uint16_t>(map.at("owner"));
  const auto filled = numbers<std::uint16_t>(map.at("filled"));
  ASSERT_EQ(owner.size(), 40);
  for (std::size_t id = 0; id < 40; ++id) {
    const PageMap::Page& page = fullest.pages[id];
    EXPECT_EQ(owner[id], page.refs == 0 ? 0 : page.owner + 2);
    EXPECT_EQ(filled[id], page.tokens);
  }
  EXPECT_EQ(numbers<std::uint32_t>(data.at("columns").at("owner")).size(),
            data.at("columns").at("n").get<std::size_t>() * 40);
}

TEST(HtmlReport, OfALongRunShowsGroupsAndSamples) {
  const ReplayReport report = run(recorded());
  const ReportDetail coarse = {
      .max_step_groups = 10, .max_requests = 7, .max_events = 1'000'000, .max_cells = 10};
  const json data = report_data(recorded(), report, "a trace", coarse);
  EXPECT_LE(data.at("steps").at("n"), 10);
  const auto preempted = numbers<float>(data.at("steps").at("preempted"));
  EXPECT_EQ(std::accumulate(preempted.begin(), preempted.end(), 0.0), report.batcher.preemptions);
  EXPECT_EQ(data.at("requests").at("n"), 7);
  EXPECT_EQ(data.at("requests").at("of"), 60);
  EXPECT_EQ(data.at("pagesPerCell"), 4);
  EXPECT_EQ(numbers<std::uint8_t>(data.at("maps").at(0).at("refs")).size(), 10);
  std::int64_t counted = 0;
  for (const json& bin : data.at("distributions").at(0).at("bins")) counted += bin.get<int>();
  EXPECT_EQ(counted, 60) << "distributions are of all requests";
}

TEST(HtmlReport, NeedsNothingFromElsewhere) {
  const std::string page = html_report(recorded(), run(recorded()), "a trace");
  for (const char* way : {" src=", " href=", "url(", "@import", "fetch(", "XMLHttpRequest", "{{"}) {
    EXPECT_THAT(page, Not(HasSubstr(way)));
  }
  EXPECT_THAT(page, HasSubstr("drawDistributions();"));
  EXPECT_THAT(page, HasSubstr("--prefill:"));
}

TEST(HtmlReport, WhateverTheTraceIsCalledStaysText) {
  const std::string page = html_report(recorded(), run(recorded()), "</script><b>\xff");
  EXPECT_THAT(page, Not(HasSubstr("</script><b>")));
  EXPECT_THAT(page, HasSubstr("\\u003c/script>\\u003cb>"));
}

}  // namespace
}  // namespace quire::tool
