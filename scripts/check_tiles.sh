#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the CPU backend with the tiles of AMX emulated and runs its tests: on any x86 core with
# AVX512-BF16, what the kernels for AMX compute can be checked, though not how fast.
#
#   scripts/check_tiles.sh [-R REGEX]   arguments go to ctest (default: the tests of the CPU kernels)
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/tiles
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUIRE_EMULATE_TILES=ON \
  -DQUIRE_TOOLS=OFF -DQUIRE_EXAMPLES=OFF -DQUIRE_INSTALL=OFF -DQUIRE_TESTS=ON
tests=(cpu_oracle_test cpu_prefixes_test cpu_split_test cpu_values_test)
cmake --build "$build" --target "${tests[@]}"
[ $# -gt 0 ] || set -- -R "^($(IFS='|' && echo "${tests[*]}"))\$"
ctest --test-dir "$build" --output-on-failure "$@"
