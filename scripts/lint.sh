#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Formatting, the include rule, licence lines, documented symbols, Python and shell scripts; --fix
# formats.
# shellcheck disable=SC2317  # the checks are called by name
set -euo pipefail
cd "$(dirname "$0")/.."

# What git would commit, on disk.
files() {
  git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do
    [ ! -f "$file" ] || printf '%s\0' "$file"
  done
}

sources=('*.hpp' '*.cpp' '*.h' '*.c' '*.cu' '*.cuh')

if [ "${1:-}" = --fix ]; then
  files "${sources[@]}" | xargs -0r clang-format-19 -i
  .venv/bin/ruff check --quiet --fix
  .venv/bin/ruff format --quiet
  exit
fi

failed=0
check() {
  local name=$1
  shift
  if "$@"; then
    echo "lint: $name: ok"
  else
    echo "lint: $name: FAILED"
    failed=1
  fi
}

is_formatted() {
  files "${sources[@]}" | xargs -0r clang-format-19 --dry-run --Werror
}

has_licence_lines() {
  local bare
  bare=$(files "${sources[@]}" '*.py' '*.sh' '*.cmake' '*CMakeLists.txt' Makefile |
    xargs -0r grep --files-without-match 'SPDX-License-Identifier: Apache-2.0' || true)
  [ -z "$bare" ] || {
    echo "$bare"
    false
  }
}

shell_is_clean() {
  files '*.sh' .ci/run | xargs -0r shellcheck
}

python_is_clean() {
  .venv/bin/ruff check --quiet && .venv/bin/ruff format --quiet --check
}

# Doxygen fails on any warning (WARN_AS_ERROR) and makes no more than one folder itself.
symbols_are_documented() {
  mkdir -p build/docs
  doxygen docs/Doxyfile
}

check "formatting (make format)" is_formatted
check "include rule" scripts/check_includes.py
check "licence lines" has_licence_lines
check "public symbols are documented" symbols_are_documented
check "Python (make format)" python_is_clean
check "shell scripts" shell_is_clean
exit $failed
