// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a run of the course tells: JSON lines and a table.
#pragma once

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "bench/course.hpp"
#include "bench/measurement.hpp"
#include "bench/options.hpp"
#include "common/table.hpp"

namespace quire::tool {

/// What is the same in all rows of a run.
struct Run {
  Ceilings ceilings;
  Ceilings published;  ///< Of the machine that the peers ran on.
  std::string_view
      arithmetic;  ///< What bounds a row that reading does not: "fma", "vdpbf16ps", "tdpbf16ps" or "matmul".
  std::string machine;
  std::string date;
  std::int32_t threads = 0;  ///< Of the CPU.
  std::int32_t scale = 1;
  double empty_us = 0;  ///< Of the GPU.
};

/// The best peer's published time beside ours.
struct Comparison {
  Peer peer;
  double us_here = 0;  ///< Its time, scaled by the ceiling of this run that bounds the row.
  double ratio = 0;    ///< Our time, of that.
};

/// @return Nothing if there is no peer, or if the batch is not the peer's.
std::optional<Comparison> compare(const Run& run, const Workload& workload,
                                  const Measurement& measured);

/// @return True if the ceiling that bounds the row was measured.
bool ceiling_is_known(const Run& run, const Measurement& measured);

/// @return A row of results.
nlohmann::ordered_json json_of(const BenchOptions& options, const Run& run,
                               const Workload& workload, const Measurement& measured);
/// @return A row that no kernel serves.
nlohmann::ordered_json json_of_skipped(const BenchOptions& options, const Workload& workload,
                                       const std::string& reason);

/// @return The headings of a device's table.
Table table_of(Device device);
void add_row(Table& table, Device device, const Run& run, const Workload& workload,
             const Measurement& measured);

/// Where the rows go besides the table: each as soon as it is there.
class RowWriter {
 public:
  explicit RowWriter(const BenchOptions& options);
  void write(const nlohmann::ordered_json& row);

 private:
  bool json_;
  std::ofstream file_;
};

}  // namespace quire::tool
