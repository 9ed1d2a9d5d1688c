#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds both examples with what pkg-config says and runs them.
#   build_and_run.sh LIBRARY_FOLDER EXAMPLES_FOLDER WORK_FOLDER
set -euo pipefail
library=$1 examples=$2 work=$3

export PKG_CONFIG_PATH="$library/pkgconfig"
read -ra flags <<<"$(pkg-config --cflags --libs 'quire >= 0.1')"
flags+=("-Wl,-rpath,$library")
mkdir -p "$work"
c++ -std=c++20 "$examples/paged_attention.cpp" "${flags[@]}" -o "$work/engine"
cc -std=c99 "$examples/paged_attention.c" "${flags[@]}" -o "$work/engine_in_c"
for program in engine engine_in_c; do
  "$work/$program" | grep --fixed-strings 'decode 6.0, prompt 0.0 1.0 2.0'
done
