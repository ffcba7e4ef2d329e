#!/usr/bin/env bash
# indexcache selftest as a user runs it: a line a case, JSON for machines, every op among them.
#   selftest_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

"$indexcache" selftest >"$work/table" 2>"$work/stderr" || fail "selftest ended with $?: $(cat "$work/table" "$work/stderr")"
[ ! -s "$work/stderr" ] || fail "said: $(cat "$work/stderr")"
tail -1 "$work/table" | grep -Eq '^[0-9]+ cases, 0 failed$' || fail "last line: $(tail -1 "$work/table")"

"$indexcache" selftest --json >"$work/json" 2>"$work/stderr" || fail "selftest --json ended with $?: $(cat "$work/json" "$work/stderr")"
python3 - "$work" "$(ls src/indexcache/ops | grep -v '\.')" <<'PYTHON'
import json, sys
folder, ops = sys.argv[1], set(sys.argv[2].split())
result = json.load(open(f"{folder}/json"))
lines = open(f"{folder}/table").read().splitlines()
assert result["device"] == "cpu" and result["failed"] == 0
assert result["provenance"]["command"].endswith("selftest --json"), result["provenance"]
assert {case["op"] for case in result["cases"]} == ops, ops
for case, line in zip(result["cases"], lines[:-1], strict=True):
    assert case["passed"] is True and case["failure"] is None and 0 <= case["worst_error_by_bound"] <= 1, case
    assert line == f"ok    {case['op']}: {case['name']}", (line, case)
# Values that are rounded at all are not exactly right: the figures are measured.
assert {case["op"] for case in result["cases"] if case["worst_error_by_bound"] > 0} == {
    "sparse_mla", "index_q", "index_k_append", "latent_append", "index_kl", "selected_attention"}
PYTHON

status=0
"$indexcache" selftest --device tpu >/dev/null 2>"$work/stderr" || status=$?
[ $status -eq 2 ] && grep -q tpu "$work/stderr" || fail "--device tpu ended with $status: $(cat "$work/stderr")"
