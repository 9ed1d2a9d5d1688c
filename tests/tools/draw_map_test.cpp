// SPDX-License-Identifier: Apache-2.0
#include "pages/draw_map.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quire::tool {
namespace {

/// 30 pages of 4 tokens: request 7 has two, request 9 three, and a page belongs to nobody.
PageMap small_map() {
  PageMap map;
  map.step = 1234;
  map.time_s = 5.25;
  map.page_size = 4;
  map.owners = {{7, 6}, {9, 12}};
  map.pages.resize(30);
  map.pages[0] = {0, 4, 1};
  map.pages[1] = {1, 4, 12};
  map.pages[2] = {1, 4, 1};
  map.pages[3] = {0, 2, 1};
  map.pages[5] = {PageMap::kOthers, 0, 1};
  map.pages[29] = {1, 4, 2};
  return map;
}

TEST(DrawMap, GivesALetterToARequestTheLargestFirst) {
  EXPECT_EQ(draw_map(small_map(), {.columns = 5}),
            "step 1,234, at 5.250 s: 6 of 30 pages of 4 tokens in use (20.0 %), 2 shared,\n"
            "2 requests, 10.00 % of the positions of their pages without a token\n"
            "\n"
            " 0 BAAb·\n"
            " 5 #····\n"
            "10 ·····\n"
            " *\n"
            "25 ····A\n"
            "\n"
            "a letter a request, small for a page that is not full; · free, # in use by no running "
            "request\n"
            "   request  tokens  pages\n"
            "A        9      12      3\n"
            "B        7       6      2\n");
}

TEST(DrawMap, ShowsHowFullPagesAreAndHowOftenTheyAreReferredTo) {
  EXPECT_THAT(draw_map(small_map(), {.show = MapShow::kFill, .columns = 6}),
              testing::HasSubstr(" 0 ███▄·#\n"));
  EXPECT_THAT(draw_map(small_map(), {.show = MapShow::kRefs, .columns = 6}),
              testing::HasSubstr(" 0 1+11·1\n"));
}

TEST(DrawMap, ColoursOnlyWhereTheyAreWantedAndTheTextStaysTheSame) {
  const std::string plain = draw_map(small_map(), {.columns = 6});
  std::string painted = draw_map(small_map(), {.columns = 6, .colours = true});
  EXPECT_THAT(plain, testing::Not(testing::HasSubstr("\033")));
  EXPECT_THAT(painted, testing::HasSubstr("\033[4;38;5;39mA")) << "a shared page is underlined";
  for (std::size_t at = painted.find('\033'); at != std::string::npos; at = painted.find('\033')) {
    painted.erase(at, painted.find('m', at) - at + 1);
  }
  EXPECT_EQ(painted, plain);
}

TEST(DrawMap, SaysHowManyRequestsItsLegendLeavesOut) {
  PageMap map = small_map();
  for (std::uint64_t request = 10; request < 40; ++request) map.owners.push_back({request, 0});
  EXPECT_THAT(draw_map(map, {}), testing::HasSubstr("and 20 more; letters are used again\n"));
}

}  // namespace
}  // namespace quire::tool
