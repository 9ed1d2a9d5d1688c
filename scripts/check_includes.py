#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the include rule: who may include whom, and where a build may be asked what it contains.

    scripts/check_includes.py [ROOT]

Prints every offence with the rule that it breaks; exits with 1 if there is one.
"""

import re
import sys
from pathlib import Path

# A folder of src/ may include its own headers and those of the folders named here.
MAY_INCLUDE = {
    "core": {"schedule", "reference"},
    "schedule": {"core"},
    "reference": {"core", "schedule"},
    "cpu": {"core", "schedule"},
    "cuda": {"core", "schedule"},
    "cache": {"core"},
    "batching": {"core", "cache"},
    "c": {"core", "cache", "batching"},
}

# Headers of other projects, by the folders that may include them. Everybody may use what is not
# named here only if it is the standard's.
THIRD_PARTY = {
    "fmt/": {"core", "cpu", "cuda", "cache", "batching", "c", "schedule", "reference"},
    "hwy/": {"cpu"},
    "boost/": {"cache"},
    "xxhash.h": {"cache"},
    "cuda_": {"cuda"},
    "nvtx3/": {"cuda"},
    "cute/": {"cuda"},
    "cutlass/": {"cuda"},
    "cuda/": {"cuda"},
}

# Only .cpp files may format texts: fmt stays out of headers and out of nvcc's sight.
CPP_ONLY = ("fmt/",)

STANDARD = re.compile(r"[a-z0-9_]+(\.h)?$")  # <vector>, <stdint.h>
SYSTEM = re.compile(r"(sys|linux|asm)/[a-z0-9_/]+\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")')
BUILD_MACRO = re.compile(r"^\s*#\s*(?:if|elif|ifdef|ifndef)\b.*\b(QUIRE_(?:CUDA|CPU|HIP)\w*)")
EXTENSIONS = {".hpp", ".cpp", ".h", ".c", ".cu", ".cuh"}


def included_files(text):
    """Yields (line number, name, in angle brackets) of each include."""
    for number, line in enumerate(text.splitlines(), start=1):
        if match := INCLUDE.match(line):
            yield number, match[1] or match[2], match[1] is not None


def offence_of_public_header(name, angled):
    if name.startswith("quire/"):
        return None
    if angled and STANDARD.match(name):
        return None
    return "a public header includes only the standard library and quire/"


def third_party_owner(name):
    return next((prefix for prefix in THIRD_PARTY if name.startswith(prefix)), None)


def offence_of_source(folder, suffix, name, angled):
    if not angled:
        owner = name.split("/")[0]
        if owner in ("quire", folder):
            return None
        if owner not in MAY_INCLUDE:
            return "includes in src/ name their folder, as src/ or include/ sees it"
        if owner not in MAY_INCLUDE[folder]:
            return f"src/{folder} may not depend on src/{owner}"
        return None
    prefix = third_party_owner(name)
    if prefix is not None:
        if folder not in THIRD_PARTY[prefix]:
            return f"src/{folder} may not use <{prefix}…>"
        if suffix != ".cpp" and prefix in CPP_ONLY:
            return f"<{prefix}…> stays out of headers and of CUDA sources"
        return None
    if STANDARD.match(name) or SYSTEM.match(name):
        return None
    return f"<{name}> is neither the standard's nor a library that src/{folder} may use"


def offence_of_client(root, folder, path, name, angled):
    """tools/ and examples/: the public headers, their own, and any third party's."""
    if angled or name.startswith("quire/"):
        return None
    if (path.parent / name).exists() or (root / folder / name).exists():
        return None
    return f"{folder}/ uses only public headers and its own"


def offences(root, path):
    relative = path.relative_to(root)
    text = path.read_text(encoding="utf-8")
    top = relative.parts[0]
    for number, name, angled in included_files(text):
        if top == "include":
            offence = offence_of_public_header(name, angled)
        elif top == "src":
            offence = offence_of_source(relative.parts[1], path.suffix, name, angled)
        else:
            offence = offence_of_client(root, top, path, name, angled)
        if offence is not None:
            yield f"{relative}:{number}: {name}: {offence}"
    if top == "src" and relative.parts[1] in ("cpu", "cuda"):
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if match := BUILD_MACRO.match(line):
            yield f"{relative}:{number}: {match[1]}: only a backend's own folder asks what is built"


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    found = []
    seen = 0
    for top in ("include", "src", "tools", "examples"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in EXTENSIONS:
                seen += 1
                found.extend(offences(root, path))
    print("\n".join(found) if found else f"{seen} files keep the include rule")
    return 1 if found or seen == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
