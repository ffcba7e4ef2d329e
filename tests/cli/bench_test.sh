#!/usr/bin/env bash
# indexcache bench as a user runs it: tables and JSON; bad inputs.
#   bench_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$work/model
python3 tests/support/make_text_model.py "$model" 4
bench=("$indexcache" bench "$model" --threads 1 --decode-tokens 2 --repeats 2)

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

"${bench[@]}" --contexts 600,64 --pattern uniform:1/4 --text "$model/text.txt" --json "$work/bench.json" >"$work/bench.txt" 2>"$work/stderr"
grep -q "notice: 600 tokens are more than the model's context of 512" "$work/stderr" || fail "no notice: $(cat "$work/stderr")"
grep -q "^Prefill, seconds: median (least-largest) of 2 runs in turn" "$work/bench.txt" || fail "$(cat "$work/bench.txt")"
python3 - "$work/bench.json" <<'PYTHON'
import json, sys
bench = json.load(open(sys.argv[1]))
baseline, shared = bench["patterns"]
assert (baseline["pattern"], shared["pattern"]) == ("FFFF", "FSSS")
for entry in (baseline, shared):
    assert [c["context"] for c in entry["contexts"]] == [64, 600]
    for c in entry["contexts"]:
        for phase in ("prefill", "decode"):
            assert len(c[phase]["runs"]) == 2 and min(c[phase]["runs"]) > 0
            assert {"indexer", "sparse_mla", "projections", "moe", "other"} <= set(c[phase]["parts"])
            assert ("speed_up" in c[phase]) == (entry is shared)
cache = [entry["contexts"][1]["cache_bytes"] for entry in (baseline, shared)]
assert cache[0]["index_keys"] == 4 * cache[1]["index_keys"] and cache[0]["latents"] == cache[1]["latents"]
assert set(bench["provenance"]) == {"command", "commit", "machine"}
PYTHON

# refused CODE WORDS COMMAND...
refused() {
  local code=$1 words=$2 status=0
  shift 2
  "$@" >"$work/stdout" 2>"$work/stderr" || status=$?
  [ $status -eq "$code" ] || fail "$* ended with $status: $(cat "$work/stderr")"
  grep -qF -- "$words" "$work/stderr" || fail "$* said: $(cat "$work/stderr")"
}
refused 3 "context of 9000000003 tokens" "${bench[@]}" --contexts 64,9000000000
refused 2 "--contexts" "${bench[@]}" --contexts 64,-5
refused 2 "--decode-tokens" "${bench[@]}" --contexts 64 --decode-tokens 9000000000000000000
refused 1 "layer" "${bench[@]}" --contexts 64 --pattern=-1,0,1,0
: >"$work/empty.txt"
refused 1 "expected text, found none" "${bench[@]}" --contexts 64 --text "$work/empty.txt"
