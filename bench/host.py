#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs host benchmarks many times, interleaved, and prints the least and the median of each case.

    bench/host.py build/bench/page_benchmark build/bench/step_benchmark
    bench/host.py --filter whole_step --output host.jsonl build/bench/step_benchmark

Times are processor times. On a machine that others use too, the least of many repetitions is what
the code costs; the median says how much the others disturb.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys

UNITS_PER_US = {"ns": 1e3, "us": 1.0, "ms": 1e-3, "s": 1e-6}


def processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def commit() -> str:
    folder = pathlib.Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def add_row(output: pathlib.Path | None, row: dict[str, object]) -> None:
    """Appends a row, with machine and date, to a file of JSON lines."""
    if output is None:
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "machine": processor(), "date": today}) + "\n")


def measure(options: argparse.Namespace, executable: str) -> dict[str, list[float]]:
    """Microseconds of processor time of every repetition, by case."""
    command = [
        executable,
        f"--benchmark_filter={options.filter}",
        f"--benchmark_repetitions={options.repetitions}",
        f"--benchmark_min_time={options.min_time}",
        "--benchmark_enable_random_interleaving=true",
        "--benchmark_format=json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    cases: dict[str, list[float]] = {}
    for row in json.loads(done.stdout)["benchmarks"]:
        if row["run_type"] != "iteration":
            continue
        if row.get("error_occurred"):
            sys.exit(f"{row['name']}: {row['error_message']}")
        name = row["run_name"].split("/repeats:")[0]
        cases.setdefault(name, []).append(row["cpu_time"] / UNITS_PER_US[row["time_unit"]])
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("executables", nargs="+")
    parser.add_argument("--filter", default=".", help="of the cases, as Google Benchmark takes it")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--min-time", type=float, default=0.05, help="seconds of a repetition")
    parser.add_argument("--output", type=pathlib.Path, help="append JSON lines to this file")
    options = parser.parse_args()
    print("| case | least, µs | median, µs |\n| --- | --- | --- |")
    for executable in options.executables:
        for name, times in measure(options, executable).items():
            least, median = min(times), statistics.median(times)
            print(f"| {name} | {least:.4g} | {median:.4g} |", flush=True)
            row = {
                "workload": name,
                "impl": "quire",
                "us_least": least,
                "us_median": median,
                "repetitions": len(times),
                "commit": commit(),
            }
            add_row(options.output, row)


if __name__ == "__main__":
    main()
