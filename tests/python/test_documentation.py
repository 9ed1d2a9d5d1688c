# SPDX-License-Identifier: Apache-2.0
"""docs/python.md shows the examples as they are, and they print what they should."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

OUTPUTS = {
    "paged_attention.py": "decode 6.0, prompt 0.0 1.0 2.0\n",
    "serving_loop.py": (
        "prompt: o (20, 8, 64), 2 pages\n"
        "decode: o (2, 8, 64), 3 pages, 1 copied\n"
        "decode: o (2, 8, 64), 3 pages, 0 copied\n"
        "decode: o (2, 8, 64), 3 pages, 0 copied\n"
    ),
}


def test_the_page_shows_the_examples() -> None:
    script = ROOT / "scripts" / "check_readme.py"
    page = ROOT / "docs" / "python.md"
    text = page.read_text(encoding="utf-8")
    assert all(f"<!-- file: ../examples/{name} -->" in text for name in OUTPUTS)
    subprocess.run([sys.executable, script, page, "no-tool"], check=True)
    subprocess.run([sys.executable, script, ROOT / "docs" / "compat.md", "no-tool"], check=True)


COMPAT_OUTPUTS = {
    "from_flashinfer.py": ("torch", "decode agrees with prefill: True\n"),
    "from_flash_attn.py": ("torch", "appended in place: True\nboth calls agree: True\n"),
    "transformers_batch.py": ("transformers", "new tokens: [6, 6, 6]\n"),
}


@pytest.mark.parametrize("name", COMPAT_OUTPUTS)
def test_examples_of_other_interfaces_print_what_they_should(name: str) -> None:
    needed, expected = COMPAT_OUTPUTS[name]
    pytest.importorskip(needed)
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "python" / name],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
    )
    assert run.stdout == expected


@pytest.mark.parametrize("name", OUTPUTS)
def test_examples_print_what_they_should(name: str) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
    )
    assert run.stdout == OUTPUTS[name]
