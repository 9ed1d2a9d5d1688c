#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""scripts/check_includes.py finds each kind of offence and passes what is allowed."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_includes.py"


def check(files):
    """Runs the script over a tree of these files; returns its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout


class CheckIncludes(unittest.TestCase):
    def assert_offence(self, name, line, rule):
        code, output = check({name: line})
        self.assertEqual(code, 1, output)
        self.assertIn(f"{name}:1:", output)
        self.assertIn(rule, output)

    def assert_allowed(self, name, line):
        code, output = check({name: line})
        self.assertEqual(code, 0, output)

    def test_public_headers_include_the_standard_library_and_their_own_only(self):
        self.assert_allowed("include/quire/a.hpp", "#include <vector>")
        self.assert_allowed("include/quire/a.hpp", '#include "quire/b.hpp"')
        self.assert_offence("include/quire/a.hpp", "#include <fmt/format.h>", "only the standard")
        self.assert_offence("include/quire/a.hpp", '#include "core/b.hpp"', "only the standard")

    def test_folders_depend_in_one_direction(self):
        self.assert_allowed("src/cpu/a.cpp", '#include "schedule/b.hpp"')
        self.assert_offence("src/cpu/a.cpp", '#include "cuda/b.hpp"', "may not depend on src/cuda")
        self.assert_offence("src/cache/a.cpp", '#include "cpu/b.hpp"', "may not depend on src/cpu")

    def test_backends_libraries_stay_with_them(self):
        self.assert_allowed("src/cpu/a.cpp", "#include <hwy/highway.h>")
        self.assert_offence("src/core/a.cpp", "#include <hwy/highway.h>", "may not use <hwy/")
        self.assert_offence("src/cpu/a.cpp", "#include <cuda_runtime.h>", "may not use <cuda_")
        self.assert_offence("src/core/a.cpp", "#include <boost/x.hpp>", "may not use <boost/")
        self.assert_offence("src/core/a.cpp", "#include <tbb/tbb.h>", "neither the standard's")

    def test_texts_are_formatted_in_sources_only(self):
        self.assert_allowed("src/core/a.cpp", "#include <fmt/format.h>")
        self.assert_offence("src/core/a.hpp", "#include <fmt/format.h>", "out of headers")
        self.assert_offence("src/cuda/a.cu", "#include <fmt/format.h>", "out of headers")

    def test_tools_and_examples_see_public_headers_only(self):
        self.assert_allowed("tools/a.cpp", '#include "quire/attention.hpp"')
        self.assert_allowed("tools/a.cpp", "#include <CLI/CLI.hpp>")
        self.assert_offence("tools/a.cpp", '#include "core/b.hpp"', "only public headers")
        self.assert_offence("examples/a.cpp", '#include "cpu/b.hpp"', "only public headers")

    def test_only_a_backends_folder_asks_what_is_built(self):
        self.assert_allowed("src/cuda/a.cpp", "#ifdef QUIRE_CUDA")
        self.assert_offence("src/core/a.cpp", "#ifdef QUIRE_CUDA", "only a backend's own folder")
        self.assert_offence("tools/a.cpp", "#if defined(QUIRE_CUDA)", "only a backend's own folder")

    def test_an_empty_tree_is_a_mistake(self):
        self.assertEqual(check({})[0], 1)


if __name__ == "__main__":
    unittest.main()
