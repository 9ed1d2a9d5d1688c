#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the README to its word: examples are the files that CI runs, the matrix is the tool's.

usage: check_readme.py README TOOL [--cuda] [--fix]

`<!-- file: PATH -->` is followed by a code block with the file's text (from its comment on, without
the licence line); `<!-- command: quire ARGS -->` … `<!-- end -->` holds what the command prints, and
`<!-- cuda command: quire ARGS -->` what it prints in a build with CUDA, which --cuda says TOOL is of.
"""

import pathlib
import re
import subprocess
import sys

FILE_BLOCK = re.compile(r"(<!-- file: (\S+) -->\n```\w+\n)(.*?)(```)", re.S)
COMMAND_BLOCK = re.compile(r"(<!-- (cuda )?command: quire ([^\n]*) -->\n)(.*?)(<!-- end -->)", re.S)


def text_of(path: pathlib.Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if "SPDX-License-Identifier" not in line)


def rewritten(readme: pathlib.Path, tool: str, has_cuda: bool) -> str:
    def from_file(match: re.Match) -> str:
        return match[1] + text_of(readme.parent / match[2]) + match[4]

    def from_command(match: re.Match) -> str:
        if match[2] and not has_cuda:
            return match[0]
        result = subprocess.run([tool, *match[3].split()], check=True, capture_output=True, text=True)
        return match[1] + "\n" + result.stdout.strip() + "\n\n" + match[5]

    text = readme.read_text(encoding="utf-8")
    return COMMAND_BLOCK.sub(from_command, FILE_BLOCK.sub(from_file, text))


def main() -> int:
    readme, tool = pathlib.Path(sys.argv[1]), sys.argv[2]
    text = rewritten(readme, tool, has_cuda="--cuda" in sys.argv[3:])
    if text == readme.read_text(encoding="utf-8"):
        return 0
    if "--fix" in sys.argv[3:]:
        readme.write_text(text, encoding="utf-8")
        return 0
    print(f"{readme} differs from the examples or from the tool's output; run this script with --fix")
    return 1


if __name__ == "__main__":
    sys.exit(main())
