#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs FlashInfer's own test files, as they are, against quire.compat.flashinfer.

    python3 scripts/run_flashinfer_tests.py DIR [--cases 200] [--seed 0] [--jobs 1] [--files NAME …]

DIR holds FlashInfer's folder `tests`, fetched elsewhere. Of each file that quire answers for, a
seeded sample of at least `--cases` cases is run (all, if it has fewer), each file in a process of
its own, `--jobs` at a time, and a table of what passed, failed, was skipped or not reached within
`--timeout`, and why, is printed. A case that meets NotImplementedError counts under its sentence.
The exit status is 0 whatever came out.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
from typing import Any

FILES = [
    "attention/test_batch_decode_kernels.py",
    "attention/test_batch_prefill_kernels.py",
    "attention/test_batch_prefill.py",
    "attention/test_batch_attention.py",
    "attention/test_batch_invariant_fa2.py",
    "attention/test_tensor_cores_decode.py",
    "attention/test_single_prefill.py",
    "attention/test_hopper.py",
    "attention/test_hopper_fp8_attention.py",
    "attention/test_hopper_fp8_sliding_window.py",
    "attention/test_fp8_prefill.py",
    "attention/test_decode_fp8_calibration_scale.py",
    "attention/test_decode_prefill_lse.py",
    "attention/test_sliding_window.py",
    "attention/test_logits_cap.py",
    "attention/test_alibi.py",
    "attention/test_non_contiguous_decode.py",
    "attention/test_non_contiguous_prefill.py",
    "attention/test_page.py",
    "attention/test_shared_prefix_kernels.py",
    "attention/test_block_sparse.py",
    "attention/test_workspace_size.py",
    "utils/test_quantization.py",
]
# Cases of these are not counted: nvfp4, RoPE inside attention, MLA and kernels made at run time.
OUT_OF_SCOPE = re.compile(r"nvfp4|ROPE_LLAMA|mla|jit", re.IGNORECASE)


class Sample:
    """The plug-in of the process that runs one file: samples, and writes what came out."""

    def __init__(self, cases: int, seed: int, results: str) -> None:
        self._cases, self._seed, self._results = cases, seed, results
        self._outcomes: list[tuple[str, str, str]] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keeps a sample, in the file's order, of what counts."""
        in_scope = [item for item in items if not OUT_OF_SCOPE.search(item.nodeid)]
        chosen = random.Random(self._seed).sample(in_scope, min(self._cases, len(in_scope)))
        kept = set(map(id, chosen))
        self._chosen = len(chosen)
        self._collected, self._in_scope = len(items), len(in_scope)
        items[:] = [item for item in items if id(item) in kept]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Notes the outcome of a case and its last line."""
        if report.when == "call" or report.outcome != "passed":
            text = ""
            if report.outcome == "failed":
                crash = getattr(report.longrepr, "reprcrash", None)
                text = str(crash.message if crash else report.longrepr).strip().splitlines()[0]
            elif report.outcome == "skipped":
                text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")
            self._outcomes.append((report.nodeid, report.outcome, text[:160]))
            self.pytest_sessionfinish()  # a process that is ended at the time limit says this much
        torch = sys.modules.get("torch")
        if report.when == "teardown" and torch is not None:  # several files share the GPU
            self._give_back(torch)

    @staticmethod
    def _give_back(torch: Any) -> None:
        if torch.cuda.memory_reserved() > 4 << 30:
            torch.cuda.empty_cache()

    def pytest_sessionfinish(self) -> None:
        """Writes the outcomes."""
        found = {
            "collected": getattr(self, "_collected", 0),
            "in_scope": getattr(self, "_in_scope", 0),
            "chosen": getattr(self, "_chosen", 0),
            "outcomes": self._outcomes,
        }
        pathlib.Path(self._results).write_text(json.dumps(found))


def run_one(directory: pathlib.Path, file: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs a sample of one file in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results.json"
        command = [sys.executable, __file__, str(directory), "--files", file]
        command += ["--cases", str(arguments.cases), "--seed", str(arguments.seed)]
        command += ["--into", str(results)]
        for option in arguments.pytest:
            command += ["--pytest=" + option]
        with open(pathlib.Path(folder) / "log", "w+") as log:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(command, stdout=log, stderr=log, timeout=arguments.timeout)
            log.seek(0)
            tail = log.read()[-400:]
        if results.exists():
            found: dict[str, Any] = json.loads(results.read_text())
            if found["outcomes"] or not found["in_scope"]:
                return found
        return {
            "collected": 0,
            "in_scope": 0,
            "chosen": 1,
            "outcomes": [("", "failed", "no result: " + tail)],
        }


def run_here(directory: pathlib.Path, arguments: argparse.Namespace) -> int:
    """Runs a sample of one file in this process."""
    import pytest

    os.chdir(directory)
    sys.path.insert(0, str(directory))
    import quire.compat.flashinfer.pytest_plugin  # noqa: F401

    file = str(directory / "tests" / arguments.files[0])
    # Their conftest files sort cases by what must be compiled first: nothing, here.
    options = [
        "--noconftest",
        "--import-mode=importlib",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
    ]
    options += ["-c", os.devnull, "--rootdir", str(directory), *arguments.pytest, file]
    return int(pytest.main(options, [Sample(arguments.cases, arguments.seed, arguments.into)]))


def main() -> int:
    """Runs the files and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--jobs", type=int, default=1, help="files at a time")
    parser.add_argument("--timeout", type=float, default=560.0, help="seconds a file")
    parser.add_argument("--pytest", action="append", default=[], help="an option for pytest")
    parser.add_argument("--into", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    if arguments.into:
        return run_here(directory, arguments)
    passed = failed = 0
    reasons: collections.Counter[tuple[str, str, str]] = collections.Counter()
    columns = "file | collected | in scope | passed | failed | skipped | not reached | of what ran"
    print(f"| {columns} |\n|" + " --- |" * 8)
    pool = concurrent.futures.ThreadPoolExecutor(arguments.jobs)
    results = pool.map(lambda file: run_one(directory, file, arguments), arguments.files)
    for file, found in zip(arguments.files, results):
        counts = collections.Counter(outcome for _, outcome, _ in found["outcomes"])
        passed, failed = passed + counts["passed"], failed + counts["failed"]
        ran = counts["passed"] + counts["failed"]
        missed = found["chosen"] - sum(counts.values())
        print(
            f"| {file} | {found['collected']} | {found['in_scope']} | {counts['passed']} "
            f"| {counts['failed']} | {counts['skipped']} | {missed} "
            f"| {100 * counts['passed'] / max(ran, 1):.1f} % |",
            flush=True,
        )
        for node, outcome, text in found["outcomes"]:
            if outcome != "passed":
                test = node.rpartition("::")[2].partition("[")[0]
                reasons[(pathlib.Path(file).name + "::" + test, outcome, text)] += 1
    rate = 100 * passed / max(passed + failed, 1)
    print(f"\n{passed} passed, {failed} failed: {rate:.1f} % of what ran\n")
    for (test, outcome, text), count in reasons.most_common():
        print(f"- {count} × {outcome}: {test}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
