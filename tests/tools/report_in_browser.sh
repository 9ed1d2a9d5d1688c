#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Opens reports in a headless Chromium: the page says itself whether everything was drawn.
#
#   report_in_browser.sh CHROMIUM QUIRE FOLDER
set -euo pipefail
chromium=$1
quire=$2
folder=$3
mkdir -p "$folder"

# check NAME STATE: the page NAME.html ends in this state.
check() {
  timeout 60 "$chromium" --headless=new --no-sandbox --disable-gpu --virtual-time-budget=5000 \
    --user-data-dir="$folder/profile" --dump-dom "file://$folder/$1.html" \
    >"$folder/$1.dom" 2>"$folder/$1.log"
  grep --quiet "<html[^>]* data-state=\"$2" "$folder/$1.dom" || {
    echo "$1.html: expected the state \"$2\", got $(grep --only-matching --max-count=1 '<html[^>]*>' "$folder/$1.dom")"
    exit 1
  }
}

"$quire" replay --preset azure-conv --requests 300 --no-attention --arrivals trace --pages 400 \
  --report "$folder/usual.html" >"$folder/usual.txt"
"$quire" replay --preset azure-conv --requests 1 --no-attention --pages 2000 \
  --report "$folder/one.html" >"$folder/one.txt"
"$quire" replay --preset azure-conv --requests 3 --no-attention --pages 1 \
  --report "$folder/nothing.html" >"$folder/nothing.txt"
for i in $(seq 40); do
  echo "{\"timestamp\": $((i * 3000)), \"input_length\": 1500, \"output_length\": 9, \"hash_ids\": [0, $((i % 5 + 1)), $((i + 9))]}"
done >"$folder/shared.jsonl"
"$quire" replay "$folder/shared.jsonl" --no-attention --prefix-cache --page-size 512 --pages 50 \
  --report "$folder/shared.html" >"$folder/shared.txt"
check usual drawn
check shared drawn
check nothing drawn
check one drawn
grep --quiet 'class="tile"><b>300</b>' "$folder/usual.dom"
# The prefix tree is there where there is a cache, and only there.
grep --quiet 'id="icicle-section" hidden' "$folder/usual.dom"
grep --quiet --extended-regexp 'id="icicle-text">[0-9]+ pages at the end; [1-9]' "$folder/shared.dom"
grep --quiet 'found up to 39 times' "$folder/shared.dom"

# The check can fail: a page that lacks a part says so.
sed 's/"submitted":"[^"]*"/"submitted":"!"/' "$folder/usual.html" >"$folder/broken.html"
if (check broken drawn) >"$folder/broken.txt" 2>&1; then
  echo "broken.html: expected a failure, got a page"
  exit 1
fi
echo "reports are drawn"
