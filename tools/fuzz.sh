#!/usr/bin/env bash
# Runs every fuzz target for a while, from its committed seeds: tools/fuzz.sh FOLDER SECONDS JOBS. New inputs go to FOLDER/corpus,
# so a second run goes on from there; a failing input is left in FOLDER/failures and printed.
set -euo pipefail
cd "$(dirname "$0")/.."
export folder=$1 seconds=$2
mkdir -p "$folder/failures"

fuzz() {
  local name=$1 seeds=fuzz/corpus/${1%_fuzz} log=$folder/$1.log
  mkdir -p "$folder/corpus/$name"
  if ! "$folder/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="$folder/failures/$name-" "$folder/corpus/$name" $([ -d "$seeds" ] && echo "$seeds") >"$log" 2>&1; then
    tail -n 40 "$log"
    echo "fuzz: $name failed; the input is in $folder/failures, the log is $log" >&2
    return 1
  fi
  echo "fuzz: $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, no failure"
}
export -f fuzz

targets=(fuzz/*_fuzz.cpp)
[ -e "${targets[0]}" ] || { echo "fuzz: no targets found under fuzz/" >&2; exit 1; }
printf '%s\n' "${targets[@]}" | xargs -P "$3" -I{} bash -c 'fuzz "$(basename "$1" .cpp)"' fuzz {}
