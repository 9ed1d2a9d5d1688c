#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compares the ABI of libquire.so, its public headers only, with the baseline in abi/.
#
#   scripts/check_abi.sh [LIBRARY]           exits with 1 if clients of the baseline would break
#   scripts/check_abi.sh --update [LIBRARY]  makes what is built the baseline
#
# LIBRARY needs debug information; without it one is built in build/abi. Exits with 77 (skipped) on
# an architecture that has no baseline.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
arch=$(uname -m)
baseline=$root/abi/libquire.$arch.abi
ignored=$root/abi/ignored.ini
update=false
if [ "${1:-}" = --update ]; then
  update=true
  shift
fi

if ! $update && [ ! -f "$baseline" ]; then
  echo "check_abi: no baseline for $arch; scripts/check_abi.sh --update makes one"
  exit 77
fi

library=${1:-}
if [ -z "$library" ]; then
  build=$root/build/abi
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O0 -g" \
    -DQUIRE_TOOLS=OFF -DQUIRE_TESTS=OFF -DQUIRE_EXAMPLES=OFF -DQUIRE_INSTALL=OFF >"$build.log"
  cmake --build "$build" --target quire >>"$build.log" || {
    tail -n 30 "$build.log" >&2
    exit 1
  }
  library=$build/lib/libquire.so
fi

current=$(mktemp)
trap 'rm -f "$current"' EXIT
abidw --headers-dir "$root/include/quire" --drop-private-types --suppressions "$ignored" \
  --exported-interfaces-only --drop-undefined-syms --type-id-style hash \
  --no-architecture --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed \
  --no-parameter-names --no-write-default-sizes "$library" |
  sed "s|path='[^']*/src/|path='src/|" >"$current"

if $update; then
  cat "$current" >"$baseline"
  echo "check_abi: wrote $baseline ($(grep -c '<elf-symbol ' "$baseline") symbols)"
  exit 0
fi

if abidiff --no-added-syms --no-show-locs "$baseline" "$current"; then
  abidiff --no-show-locs "$baseline" "$current" || echo "check_abi: only additions; clients go on working"
  exit 0
fi
cat >&2 <<END

check_abi: the ABI is not that of $baseline.
If clients built against it go on working (a field was added at the end of a struct that has a
struct_size, say) or are meant to break (then raise the version), run

    scripts/check_abi.sh --update

and commit the baseline with the change.
END
exit 1
