#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what leaves the built libraries.

    scripts/check_symbols.py SHARED STATIC SONAME

The shared library exports C functions `quire_*` and the C++ of `quire::v0`, all under the version
QUIRE_0, and nothing of its internals, of the standard library's templates or of other projects. The
static library leaves nothing of quire visible to what is linked with it. Exits with 1 on an offence.
"""

import re
import subprocess
import sys

VERSION = "QUIRE_0"
C_FUNCTION = re.compile(r"quire_[a-z0-9_]+$")
PUBLIC_CXX = re.compile(
    r"((typeinfo|typeinfo name|vtable) for )?"
    r"(virtual thunk to |non-virtual thunk to )?quire::v0::(?!internal\b)[\w:~]+"
)
OF_QUIRE = re.compile(r"((typeinfo|typeinfo name|vtable|VTT|guard variable) for )?quire(::|_)")


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def demangled(names):
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout
    return text.splitlines()


def soname(library):
    match = re.search(r"SONAME.*\[(.+)\]", output_of("readelf", "-d", library))
    return match[1] if match else None


def offences_of_shared(library, expected_soname):
    if soname(library) != expected_soname:
        yield f"SONAME: expected {expected_soname}, got {soname(library)}"
    lines = output_of("nm", "-D", "--defined-only", "--with-symbol-versions", library).splitlines()
    symbols = [line.split()[2] for line in lines if line.split()[1] != "A"]
    names = [symbol.split("@")[0] for symbol in symbols]
    functions = 0
    for symbol, name, text in zip(symbols, names, demangled(names)):
        if not symbol.endswith(f"@@{VERSION}"):
            yield f"{symbol}: expected version {VERSION}"
        if C_FUNCTION.match(name):
            functions += 1
        elif not PUBLIC_CXX.match(text):
            yield f"{text}: exported, but neither quire_* nor public C++"
    if functions == 0 or functions == len(symbols):
        yield f"expected C functions and C++ symbols, got {functions} of {len(symbols)} in C"


def offences_of_static(library):
    table = output_of("readelf", "--wide", "--syms", library)
    symbol = re.compile(r"\s(?:GLOBAL|WEAK|UNIQUE)\s+(\w+)\s+(?!UND)\w+\s+(\S+)")
    found = [match.groups() for line in table.splitlines() if (match := symbol.search(line))]
    texts = demangled([name for _, name in found])
    own = [(visibility, text) for (visibility, _), text in zip(found, texts) if OF_QUIRE.match(text)]
    if not own:
        yield f"{library} defines nothing of quire"
    for visibility, text in own:
        if visibility == "DEFAULT":
            yield f"{text}: visible in the static library"


def main():
    shared, static, expected_soname = sys.argv[1:]
    found = [f"{shared}: {offence}" for offence in offences_of_shared(shared, expected_soname)]
    found += [f"{static}: {offence}" for offence in offences_of_static(static)]
    print("\n".join(found) if found else "what leaves the libraries is what should")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
