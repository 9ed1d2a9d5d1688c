#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the CPU backend for 64-bit ARM and runs its tests under qemu-user, on any Debian 12 or
# Ubuntu 24.04 of another architecture: NEON is the tier that no machine of the maintainers has.
# Installs the cross compiler and the emulator; the libraries of that architecture are only unpacked.
#
#   scripts/check_neon.sh [-R REGEX]   arguments go to ctest (default: the tests of the CPU kernels)
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/neon
sysroot=$root/sysroot

if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-g++ >/dev/null; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -qq --yes --no-install-recommends qemu-user \
    g++-aarch64-linux-gnu >/dev/null
fi

if [ ! -e "$sysroot/.complete" ]; then
  mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial" "$sysroot"
  apt_arm64() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
      -o Dir::State::Lists="$root/apt/lists" -o Dir::State::status=/dev/null \
      -o Dir::Cache="$root/apt" "$@"
  }
  apt_arm64 update
  (
    cd "$root/apt/archives"
    apt_arm64 download libhwy-dev libhwy1 libfmt-dev libfmt9 libgtest-dev libgmock-dev librapidcheck-dev
    for package in *.deb; do dpkg-deb --extract "$package" "$sysroot"; done
  )
  touch "$sysroot/.complete"
fi

cmake -S . -B "$root/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_FIND_ROOT_PATH="$sysroot" -DCMAKE_PREFIX_PATH="$sysroot/usr" \
  -DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=ONLY -DCMAKE_FIND_ROOT_PATH_MODE_LIBRARY=ONLY \
  -DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY -DCMAKE_LIBRARY_ARCHITECTURE=aarch64-linux-gnu \
  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu;-E;LD_LIBRARY_PATH=$sysroot/usr/lib/aarch64-linux-gnu" \
  -DQUIRE_TOOLS=OFF -DQUIRE_EXAMPLES=OFF -DQUIRE_INSTALL=OFF -DQUIRE_TESTS=ON
tests=(cpu_oracle_test cpu_append_test cpu_merge_test cpu_prefixes_test cpu_split_test
       cpu_values_test cpu_visibility_test)
cmake --build "$root/build" --target "${tests[@]}"
[ $# -gt 0 ] || set -- -R "^($(IFS='|' && echo "${tests[*]}"))\$"
ctest --test-dir "$root/build" --output-on-failure "$@"
