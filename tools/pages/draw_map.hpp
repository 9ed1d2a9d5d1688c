// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "pages/page_map.hpp"

namespace quire::tool {

/// What a cell of a drawn map says of its page.
enum class MapShow {
  kOwner,  ///< A letter a request, the one with the most pages first; small if the page is not full.
  kFill,   ///< A block as high as the page is full.
  kRefs,   ///< The number of references, + for 10 and more.
};

struct MapStyle {
  MapShow show = MapShow::kOwner;
  int columns = 64;  ///< Pages in a row.
  bool colours = false;
  int most_owners = 12;  ///< In the legend.
};

/// @return The map as lines of text: a summary, a cell a page in rows of `columns` (rows that are
///   free like the row before are one `*`), and who has the most pages.
std::string draw_map(const PageMap& map, const MapStyle& style);

}  // namespace quire::tool
