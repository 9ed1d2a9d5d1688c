#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""scripts/check_kernel_resources.py finds each kind of offence and updates what was built."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_kernel_resources.py"
OLD, NEW = "13.0.88", "13.1.80"
ATTEND = "_ZN5quire4cuda3mma13attend_kernelINS1_6ConfigI6__halfLi64ELi64ELm101376EEEEEvNS0_12AttendParamsE"
ATTEND_ROW = "mma::attend_kernel<Config<__half, 64, 64, 101376>>"
COPY = "_ZN5quire4cuda12_GLOBAL__N_111copy_kernelEi"


def dump(kernels):
    """What cuobjdump prints; a kernel is (symbol, architecture, registers, stack, shared)."""
    return "".join(
        f"arch = {arch}\n Function {symbol}:\n"
        f"  REG:{registers} STACK:{stack} SHARED:{shared} LOCAL:0 CONSTANT[0]:712 TEXTURE:0\n"
        for symbol, arch, registers, stack, shared in kernels
    )


class CheckKernelResources(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.table = self.folder / "table.md"
        self.table.write_text(f"Above\n<!-- nvcc {OLD} -->\n<!-- end -->\nBelow\n", encoding="utf-8")
        self.cuobjdump = self.folder / "cuobjdump"
        self.cuobjdump.write_text('#!/bin/sh\ncat "$2"\n', encoding="utf-8")
        self.cuobjdump.chmod(0o755)

    def run_on(self, kernels, *options, nvcc=OLD):
        """Runs the script on a build of these kernels; returns its exit code and what it printed."""
        built = self.folder / "built.o"
        built.write_text(dump(kernels), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, SCRIPT, "--cuobjdump", self.cuobjdump, "--nvcc", nvcc, *options,
             self.table, built],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def grant(self, kernels, *options, nvcc=OLD):
        code, output = self.run_on(kernels, "--update", *options, nvcc=nvcc)
        self.assertEqual(code, 0, output)

    def assert_offence(self, kernels, sentence, *options):
        code, output = self.run_on(kernels, *options)
        self.assertEqual(code, 1, output)
        self.assertIn(sentence, output)
        self.assertIn("update_kernel_resources", output)

    def test_what_was_granted_passes_and_less_too(self):
        self.grant([(ATTEND, "sm_80", 150, 8, 1024)])
        self.assertIn(f"| `{ATTEND_ROW}` | sm_80 | 150 | 8 | 1024 |", self.table.read_text())
        self.assertEqual(self.run_on([(ATTEND, "sm_80", 150, 8, 1024)])[0], 0)
        self.assertEqual(self.run_on([(ATTEND, "sm_80", 120, 0, 0)])[0], 0)

    def test_more_than_granted_is_an_offence(self):
        self.grant([(ATTEND, "sm_80", 150, 0, 0)])
        for kernel, sentence in [
            ((ATTEND, "sm_80", 151, 0, 0), "registers: expected at most 150, got 151"),
            ((ATTEND, "sm_80", 150, 16, 0), "local memory: expected at most 0, got 16"),
            ((ATTEND, "sm_80", 150, 0, 64), "shared memory: expected at most 0, got 64"),
        ]:
            self.assert_offence([kernel], f"{ATTEND_ROW}, sm_80: {sentence}")

    def test_a_kernel_without_a_row_is_an_offence(self):
        self.grant([(ATTEND, "sm_80", 150, 0, 0)])
        self.assert_offence([(COPY, "sm_80", 10, 0, 0)], "copy_kernel, sm_80: has no row")

    def test_a_row_without_a_kernel_is_an_offence_of_a_complete_build_only(self):
        self.grant([(ATTEND, "sm_80", 150, 0, 0), (ATTEND, "sm_90a", 150, 0, 0)])
        self.grant([(COPY, "sm_80", 10, 0, 0)])
        built = [(COPY, "sm_80", 10, 0, 0)]
        self.assertEqual(self.run_on(built)[0], 0)
        self.assert_offence(built, f"{ATTEND_ROW}, sm_80: has a row", "--complete")
        self.grant(built, "--complete")
        self.assertNotIn("sm_80 | 150", self.table.read_text())
        self.assertIn("sm_90a | 150", self.table.read_text())  # of a GPU that was not built for

    def test_other_compilers_and_other_gpus_are_skipped(self):
        self.grant([(ATTEND, "sm_80", 150, 0, 0)])
        more = [(ATTEND, "sm_80", 200, 0, 0)]
        self.assertEqual(self.run_on(more, nvcc=NEW)[0], 77)
        self.assertEqual(self.run_on([(ATTEND, "sm_120a", 200, 0, 0)])[0], 77)
        self.assertEqual(self.run_on([*more, (ATTEND, "sm_120a", 1, 0, 0)])[0], 1)

    def test_another_compiler_updates_all_rows_or_none(self):
        self.grant([(ATTEND, "sm_80", 150, 0, 0), (COPY, "sm_80", 10, 0, 0)])
        code, output = self.run_on([(COPY, "sm_80", 11, 0, 0)], "--update", nvcc=NEW)
        self.assertEqual(code, 1, output)
        self.grant([(ATTEND, "sm_80", 149, 0, 0)], "--complete", nvcc=NEW)
        self.assertIn(f"<!-- nvcc {NEW} -->", self.table.read_text())
        self.assertEqual(self.table.read_text().splitlines()[-1], "Below")

    def test_nothing_to_read_is_not_a_pass(self):
        self.assertEqual(self.run_on([])[0], 1)
        self.cuobjdump.unlink()
        code, output = self.run_on([(ATTEND, "sm_80", 150, 0, 0)])
        self.assertEqual(code, 1)
        self.assertIn("install_dependencies.sh cuda", output)


if __name__ == "__main__":
    unittest.main()
