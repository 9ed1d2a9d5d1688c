// SPDX-License-Identifier: Apache-2.0
#include "memory.hpp"

#include <gtest/gtest.h>

#include <array>

namespace quire::tool {
namespace {

TEST(MemoryFigures, FourRequestsSaveAlmostHalfOfTheirRectangle) {
  const std::array<std::int32_t, 4> lengths = {100, 50, 75, 200};
  const MemoryFigures figures = memory_figures(lengths, 16);
  EXPECT_EQ(figures.padded, 800);
  EXPECT_EQ(figures.used, 425);
  EXPECT_EQ(figures.pages, 7 + 4 + 5 + 13);
  EXPECT_EQ(figures.paged, 464);
  EXPECT_DOUBLE_EQ(figures.saved_percent(), 46.875);
  EXPECT_DOUBLE_EQ(figures.saved_by_pages_percent(), 42);
}

TEST(MemoryFigures, PagesOfOneTokenRoundNothing) {
  const std::array<std::int32_t, 3> lengths = {1, 0, 7};
  const MemoryFigures figures = memory_figures(lengths, 1);
  EXPECT_EQ(figures.paged, figures.used);
  EXPECT_EQ(figures.padded, 21);
}

TEST(MemoryFigures, EmptyRequestsSaveNothing) {
  const std::array<std::int32_t, 2> lengths = {0, 0};
  EXPECT_EQ(memory_figures(lengths, 16).padded, 0);
  EXPECT_EQ(memory_figures(lengths, 16).saved_percent(), 0);
}

TEST(MemoryFigures, TheLargestLengthsDoNotOverflow) {
  const std::array<std::int32_t, 3> lengths = {2147483647, 2147483647, 1};
  const MemoryFigures figures = memory_figures(lengths, 65536);
  EXPECT_EQ(figures.padded, 6442450941);
  EXPECT_EQ(figures.pages, 65537);
}

}  // namespace
}  // namespace quire::tool
