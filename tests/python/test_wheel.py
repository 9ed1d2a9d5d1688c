# SPDX-License-Identifier: Apache-2.0
"""The wheel is built as pip builds it, and works where there is nothing else of quire."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    pytest.importorskip("scikit_build_core")
    folder = tmp_path_factory.mktemp("wheel")
    environment = dict(os.environ)
    if shutil.which("ccache"):
        environment["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, env=environment)
    (built,) = folder.iterdir()
    return built


def test_one_wheel_serves_every_python_and_holds_what_it_needs(wheel: pathlib.Path) -> None:
    assert "-py3-none-linux_" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "python"
    sources = {str(path.relative_to(package)) for path in package.glob("quire/**/*.py")}
    assert sources | {"quire/py.typed", "quire/libquire.so.0"} <= names
    unexpected = {
        name
        for name in names - sources - {"quire/py.typed", "quire/libquire.so.0"}
        if ".dist-info/" not in name and not name.startswith("quire/libhwy.so")
    }
    assert not unexpected


def test_an_installed_wheel_works_on_its_own(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([python, *install, wheel], check=True)
    # NumPy is taken from here, so that nothing is downloaded; quire is not here.
    numpy = tmp_path / "numpy"
    numpy.mkdir()
    site_packages = pathlib.Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (site_packages / name).exists():
            (numpy / name).symlink_to(site_packages / name)
    script = f"""
import pathlib, runpy, quire
maps = pathlib.Path("/proc/self/maps").read_text()
loaded = {{line.split()[-1] for line in maps.splitlines() if "quire" in line or "libhwy" in line}}
assert loaded, maps
assert all(path.startswith({str(tmp_path)!r}) for path in loaded), loaded
runpy.run_path({str(ROOT / "examples" / "paged_attention.py")!r})
"""
    environment = {name: value for name, value in os.environ.items() if name != "QUIRE_LIBRARY"}
    environment["PYTHONPATH"] = str(numpy)
    run = subprocess.run(
        [python, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert run.stdout.startswith("decode 6.0")


def test_a_package_without_its_library_says_so(tmp_path: pathlib.Path) -> None:
    shutil.copytree(ROOT / "python" / "quire", tmp_path / "quire")
    for environment, sentence in (
        ({}, "libquire.so.0 is missing: install the package (pip install .) or let QUIRE_LIBRARY"),
        ({"QUIRE_LIBRARY": "/nowhere/libquire.so.0"}, "/nowhere/libquire.so.0 cannot be loaded"),
        ({"QUIRE_LIBRARY": "libm.so.6"}, "libm.so.6 is too old for this package: no quire_"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", "import quire"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 1
        assert "ImportError: quire: " in run.stderr
        assert sentence in run.stderr
