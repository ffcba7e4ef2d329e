#!/usr/bin/env bash
# Runs every fuzz target for a while, from its committed seeds: tools/fuzz.sh FOLDER SECONDS. New inputs go to FOLDER/corpus, so
# a second run goes on from there; a failing input is left in FOLDER/failures and printed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
seconds=$2
mkdir -p "$folder/failures"
count=0
for source in fuzz/*_fuzz.cpp; do
  name=$(basename "$source" .cpp)
  seeds=fuzz/corpus/${name%_fuzz}
  mkdir -p "$folder/corpus/$name"
  log=$folder/$name.log
  if ! "$folder/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="$folder/failures/$name-" "$folder/corpus/$name" $([ -d "$seeds" ] && echo "$seeds") >"$log" 2>&1; then
    tail -n 40 "$log"
    echo "fuzz: $name failed; the input is in $folder/failures, the log is $log" >&2
    exit 1
  fi
  echo "fuzz: $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, no failure"
  count=$((count + 1))
done
[ "$count" -gt 0 ] || { echo "fuzz: no targets found under fuzz/" >&2; exit 1; }
