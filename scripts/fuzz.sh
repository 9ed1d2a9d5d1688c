#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs each fuzzer, or the named ones, for some seconds, one after the other.
#
#   scripts/fuzz.sh SECONDS [NAME...]    e.g. scripts/fuzz.sh 300 fuzz_attention
#
# Builds them in build/dev (preset `dev`: Clang, ASan, UBSan). Seeds come from tests/fuzz/corpus/NAME;
# what is found on the way is kept in build/dev/fuzz/NAME.found and read again by the next run.
set -eu

if [ $# -lt 1 ]; then
  sed -n '3,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
seconds=$1
shift

root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -eq 0 ]; then
  for source in "$root"/tests/fuzz/*.cpp; do
    set -- "$@" "fuzz_$(basename "$source" .cpp)"
  done
fi

cd "$root"
cmake --preset dev >/dev/null
cmake --build --preset dev --target "$@"
cd build/dev/fuzz
for name in "$@"; do
  mkdir -p "$name.found"
  seeds=$root/tests/fuzz/corpus/$name
  [ -d "$seeds" ] || seeds=
  echo "== $name, $seconds s"
  nice "./$name" -max_total_time="$seconds" -timeout=25 -verbosity=0 \
    "$name.found" ${seeds:+"$seeds"} || {
    echo "$name failed; run it again with build/dev/fuzz/$name build/dev/fuzz/FILE" >&2
    exit 1
  }
done
