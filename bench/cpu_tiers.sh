#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests and measures every CPU tier that this machine can run: the oracle tests (all tiers, forced),
# then decode and prefill with one thread and with all. Takes about three minutes on 16 cores.
#
#   bench/cpu_tiers.sh BUILD OUT [THREADS]
#
# BUILD is a build folder with bin/quire and tests/cpu_oracle_test; rows are appended to
# OUT/course.jsonl, tables printed. TIERS="amx_bf16 avx512_bf16" in the environment names tiers.
set -euo pipefail
[ $# -ge 2 ] || {
  sed -n 's/^# \{0,1\}//; 3,9p' "$0"
  exit 2
}
build=$1
out=$2
all=${3:-$(nproc)}
mkdir -p "$out"
export LD_LIBRARY_PATH=$build/lib:${LD_LIBRARY_PATH:-}

"$build/tests/cpu_oracle_test" --gtest_brief=1
here=$("$build/bin/quire" info | sed -n 's/.*kernels: //p' | tr -d ',' | sed 's/cpu\.//g')
echo "tiers here: $here"
tiers=${TIERS:-$here}

measure() { # TIER THREADS ARGS...
  local tier=$1 threads=$2
  shift 2
  echo "== $tier, $threads threads: $*"
  QUIRE_CPU_TIER=$tier "$build/bin/quire" bench --threads "$threads" --min-time 0.1 \
    --output "$out/course.jsonl" "$@"
}

for threads in 1 "$all"; do
  for tier in $tiers; do
    [ "$tier" != portable ] || continue
    measure "$tier" "$threads" --workload "dec b64 4k" --workload "spec4 b64 4k" \
      --workload "chunk 512@16k" --workload "pre 1x16k" --workload "pre 4x4k" \
      --workload "pre 32 skew"
    measure "$tier" "$threads" --workload "dec b64 4k" --kv-dtype int8
    measure "$tier" "$threads" --workload "dec b64 4k" --kv-dtype float8_e4m3
  done
  measure avx512 "$threads" --workload "pre 1x16k full" --dtype fp32 || true
  measure avx2 "$threads" --workload "pre 1x16k full" --dtype fp32
done
