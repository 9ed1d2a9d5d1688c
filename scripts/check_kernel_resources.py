#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the CUDA kernels to the registers and memory that docs/kernel_resources.md grants them.

    scripts/check_kernel_resources.py --cuobjdump FILE --nvcc VERSION [--complete] [--update]
                                      TABLE OBJECT...

Reads what was compiled into the objects, kernel by kernel and architecture by architecture. Exits
with 1 if a kernel takes more than its row of TABLE or has none. Rows of what a build was trimmed of
are left alone; --complete says that no kernel was left out, and then a row without a kernel is an
offence too. --update rewrites the rows instead. Another compiler release allocates other registers:
then nothing is compared, and the exit code is 77 (skipped); likewise if the table has no row of any
architecture that was built.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

SKIPPED = 77
UPDATE = "cmake --build build/cuda --target update_kernel_resources"

TABLE = re.compile(r"(<!-- nvcc )(\S*)( -->\n)(.*?)(<!-- end -->)", re.S)
ROW = re.compile(r"\| `(.+)` \| (sm_\w+) \| (\d+) \| (\d+) \| (\d+) \|")
HEADING = """
| kernel | GPU | registers | local memory, B | static shared memory, B |
| --- | --- | --- | --- | --- |
"""

ARCH = re.compile(r"arch = (sm_\w+)")
FUNCTION = re.compile(r"\s*Function (\S+):$")
USAGE = re.compile(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+) ")


@dataclass
class Usage:
    """What a kernel takes; field names are those of offences."""

    registers: int
    local_memory: int  # of a thread, in bytes: spilled registers, and arrays that are indexed
    shared_memory: int  # of a block, in bytes, without what a launch asks for

    def growth(self, granted):
        """Yields the name, the value and the granted value of what is more than granted."""
        for field in fields(self):
            mine, limit = getattr(self, field.name), getattr(granted, field.name)
            if mine > limit:
                yield field.name.replace("_", " "), mine, limit


def demangled(names):
    """The names as the table has them: without arguments, and namespaces only of the kernel."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout
    for name in text.splitlines():
        name = re.sub(r"\(anonymous namespace\)::", "", name)
        name = re.sub(r"\(.*\)$", "", name)
        function, template, arguments = re.sub(r"^void ", "", name).partition("<")
        arguments = re.sub(r"\w+::", "", arguments).replace("> >", ">>")
        arguments = re.sub(r"\b(\d+)u?l?\b", r"\1", arguments)
        yield function.removeprefix("quire::cuda::") + template + arguments


def kernels_of(cuobjdump, objects):
    """Usage by kernel and architecture."""
    found = []
    for path in objects:
        text = subprocess.run(
            [cuobjdump, "--dump-resource-usage", path], check=True, capture_output=True, text=True
        ).stdout
        for line in text.splitlines():
            if match := ARCH.match(line):
                arch = match[1]
            elif match := FUNCTION.match(line):
                function = match[1]
            elif match := USAGE.match(line):
                registers, stack, shared, local = map(int, match.groups())
                found.append((function, arch, Usage(registers, stack + local, shared)))
    kernels = {}
    for name, (_, arch, usage) in zip(demangled([function for function, _, _ in found]), found):
        if (name, arch) in kernels:
            sys.exit(f"{name}, {arch}: expected one kernel of this name, got two")
        kernels[name, arch] = usage
    if not kernels:
        sys.exit(f"expected kernels in {len(objects)} objects, found none")
    return kernels


def rows_of(text):
    return {(row[1], row[2]): Usage(*map(int, row.groups()[2:])) for row in ROW.finditer(text)}


def table_of(kernels):
    def natural(key):  # head dim 64 before 128
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", " ".join(key))]

    lines = [
        "| " + " | ".join([f"`{name}`", arch, *map(str, astuple(kernels[name, arch]))]) + " |\n"
        for name, arch in sorted(kernels, key=natural)
    ]
    return HEADING + "".join(lines) + "\n"


def without_kernel(rows, kernels):
    """Keys of rows that name no kernel, of architectures that were built."""
    archs = {arch for _, arch in kernels}
    return {(name, arch) for name, arch in rows.keys() - kernels.keys() if arch in archs}


def offences(kernels, rows, complete):
    for (name, arch), usage in kernels.items():
        if (name, arch) not in rows:
            yield f"{name}, {arch}: has no row"
            continue
        for what, mine, limit in usage.growth(rows[name, arch]):
            yield f"{name}, {arch}: {what}: expected at most {limit}, got {mine}"
    if complete:
        for name, arch in without_kernel(rows, kernels):
            yield f"{name}, {arch}: has a row, but there is no such kernel"


def check(arguments, kernels, nvcc, rows):
    if nvcc != arguments.nvcc:
        print(f"not compared: the table is of nvcc {nvcc}, this build of nvcc {arguments.nvcc}")
        return SKIPPED
    archs = {arch for _, arch in rows}
    compared = {key: usage for key, usage in kernels.items() if key[1] in archs}
    others = sorted({arch for _, arch in kernels.keys() - compared.keys()})
    if others:
        print(f"not compared: {', '.join(others)}, of which the table has no rows")
    if not compared:
        return SKIPPED
    found = sorted(offences(compared, rows, arguments.complete))
    if found:
        print(*found, sep="\n")
        print(f"{arguments.table} says what kernels may take. If this is meant to be:\n  {UPDATE}")
        return 1
    less = sum(any(rows[key].growth(usage)) for key, usage in compared.items())
    print(f"{len(compared)} kernels take no more than their rows; {less} take less")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuobjdump", required=True)
    parser.add_argument("--nvcc", required=True, metavar="VERSION")
    parser.add_argument("--complete", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("table", type=Path)
    parser.add_argument("objects", nargs="+")
    arguments = parser.parse_args()
    if not Path(arguments.cuobjdump).exists():
        sys.exit("cuobjdump: expected in the CUDA toolkit or in .venv, found in neither; "
                 "scripts/install_dependencies.sh cuda installs it")

    kernels = kernels_of(arguments.cuobjdump, arguments.objects)
    text = arguments.table.read_text(encoding="utf-8")
    table = TABLE.search(text)
    if table is None:
        sys.exit(f"{arguments.table}: expected <!-- nvcc VERSION --> … <!-- end -->")
    rows = rows_of(table[4])
    if not arguments.update:
        return check(arguments, kernels, table[2], rows)
    if arguments.complete:
        for key in without_kernel(rows, kernels):
            del rows[key]
    if table[2] != arguments.nvcc and rows.keys() - kernels.keys():
        sys.exit(f"the table is of nvcc {table[2]}: nvcc {arguments.nvcc} needs a complete build")
    rows |= kernels
    new = table[1] + arguments.nvcc + table[3] + table_of(rows) + table[5]
    arguments.table.write_text(text[: table.start()] + new + text[table.end() :], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
