#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the quantile tables of the presets of `quire replay` from the traces they stand for.

    measure_quantiles.py AzureLLMInferenceTrace_conv.csv.gz conversation_trace.jsonl.gz \
        > tools/trace/quantile_tables.hpp

The traces are public: github.com/Azure/AzurePublicDataset (data/AzureLLMInferenceTrace_conv.csv)
and github.com/kvcache-ai/Mooncake (FAST25-release/traces/conversation_trace.jsonl).
"""

import csv
import datetime
import gzip
import json
import random
import sys

FRACTIONS = [i / 100 for i in range(100)] + [0.995, 0.999, 1.0]
MOONCAKE_GRID_S = 3.0  # its timestamps are rounded to a grid; jitter puts the arrivals back between
JITTER_SEED = 1

HEADER = """\
// SPDX-License-Identifier: Apache-2.0
// clang-format off: a generated table
/// @file
/// Quantiles of request traces, measured by measure_quantiles.py; values between neighbours are
/// interpolated. Lengths are drawn independently: inputs and outputs of these traces do not correlate.
///
/// azure-conv: Azure LLM inference trace 2023, conversation ({azure} requests), Microsoft,
/// github.com/Azure/AzurePublicDataset, CC-BY 4.0; Patel et al., "Splitwise", ISCA 2024.
/// mooncake-conv: Mooncake conversation trace ({mooncake} requests),
/// github.com/kvcache-ai/Mooncake, Apache-2.0; Qin et al., "Mooncake", FAST 2025.
#pragma once

#include <array>
#include <cstddef>

namespace quire::tool {{

inline constexpr std::size_t kNumQuantiles = {count};

/// Fractions of the requests that the quantiles do not exceed.
inline constexpr std::array<double, kNumQuantiles> kQuantileFractions = {{
{fractions}}};
"""

TABLES = """
// {title}
inline constexpr std::array<double, kNumQuantiles> k{name}Input = {{  // tokens
{input}}};
inline constexpr std::array<double, kNumQuantiles> k{name}Output = {{  // tokens
{output}}};
inline constexpr std::array<double, kNumQuantiles> k{name}Gap = {{  // ms from arrival to arrival
{gap}}};
"""


def quantiles(samples):
    ordered = sorted(samples)
    places = [fraction * (len(ordered) - 1) for fraction in FRACTIONS]
    values = []
    for place in places:
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        values.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return values


def gaps_ms(arrivals):
    ordered = sorted(arrivals)
    return [1000 * (b - a) for a, b in zip(ordered, ordered[1:])]


def azure(path):
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    arrivals = []
    for row in rows:
        whole, fraction = row["TIMESTAMP"].split(".")
        moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
        arrivals.append(moment.timestamp() + float("0." + fraction))
    return ([int(r["ContextTokens"]) for r in rows], [int(r["GeneratedTokens"]) for r in rows],
            gaps_ms(arrivals))


def mooncake(path):
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    jitter = random.Random(JITTER_SEED)
    arrivals = [r["timestamp"] / 1000 + jitter.uniform(0, MOONCAKE_GRID_S) for r in rows]
    return [r["input_length"] for r in rows], [r["output_length"] for r in rows], gaps_ms(arrivals)


def listing(values):
    lines, line = [], "   "
    for value in values:
        word = f" {value:.6g},"
        if len(line) + len(word) > 100:
            lines.append(line)
            line = "   "
        line += word
    return "\n".join(lines + [line.rstrip(",")])


def main():
    traces = [("AzureConv", "azure-conv", azure(sys.argv[1])),
              ("MooncakeConv", "mooncake-conv", mooncake(sys.argv[2]))]
    print(HEADER.format(azure=f"{len(traces[0][2][0]):,}", mooncake=f"{len(traces[1][2][0]):,}",
                        count=len(FRACTIONS), fractions=listing(FRACTIONS)), end="")
    for name, title, (inputs, outputs, gaps) in traces:
        print(TABLES.format(name=name, title=title, input=listing(quantiles(inputs)),
                            output=listing(quantiles(outputs)), gap=listing(quantiles(gaps))), end="")
    print("\n}  // namespace quire::tool")


if __name__ == "__main__":
    main()
