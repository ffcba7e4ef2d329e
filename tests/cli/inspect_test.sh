#!/usr/bin/env bash
# indexcache inspect as a user runs it: figures of a golden folder as text and JSON, and bad input as one clear line.
#   inspect_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
model=tests/golden/models/glm_mixed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# refused WHAT TEXT ARGUMENTS...: exit status 1 and one line on stderr that holds TEXT.
refused() {
  local what=$1 text=$2 status=0
  shift 2
  "$indexcache" inspect "$@" >"$work/out" 2>"$work/err" || status=$?
  [ "$status" = 1 ] || fail "$what: exit status $status"
  [ ! -s "$work/out" ] || fail "$what: printed something"
  [ "$(wc -l <"$work/err")" = 1 ] || fail "$what: not one line: $(cat "$work/err")"
  grep -qF -- "$text" "$work/err" || fail "$what: no \"$text\" in: $(cat "$work/err")"
}

"$indexcache" inspect "$model" >"$work/text"
for line in "glm_moe_dsa: 5 layers" "Schedule: 2 of 5 layers Full" "FSFSS" "does not read indexer_types"; do
  grep -qF -- "$line" "$work/text" || fail "no \"$line\" in the text"
done

"$indexcache" inspect "$model" --context 1000 --json >"$work/json"
python3 - "$work/json" "$model" <<'PYTHON'
import json, struct, sys

report = json.load(open(sys.argv[1]))
data = open(sys.argv[2] + "/model.safetensors", "rb").read()
header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
header.pop("__metadata__", None)
sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
widths = {"F32": 4, "F16": 2}
assert report["bytes"]["stored"] == sum(sizes.values())
assert report["parameters"]["stored"] == sum(size // widths[header[name]["dtype"]] for name, size in sizes.items())
assert sum(part["tensors"] for part in report["parts"]) == len(sizes)
assert report["schedule"]["pattern"] == "FSFSS" and report["schedule"]["sources"] == [-1, 0, -1, 2, 2]
readings = {reading["reader"]: reading for reading in report["schedule"]["readings"]}
assert readings["transformers"]["same"] and not readings["vLLM"]["same"]
assert report["memory"]["context"] == 1000
assert report["memory"]["cache_bytes"] == 1000 * 2 * (5 * (40 + 16) + 2 * 48)
assert report["notices"] == []
PYTHON

refused "no folder" "a model folder with a config.json, found none" "$work/none"
mkdir "$work/broken"
cp "$model/model.safetensors" "$work/broken"
sed 's/"glm_moe_dsa"/"glm5_next"/' "$model/config.json" >"$work/broken/config.json"
refused "another model" 'found "glm5_next"' "$work/broken"
sed 's/"index_topk": 24/"index_topk": 24, "index_topk_pattern": "FSSFS"/' "$model/config.json" >"$work/broken/config.json"
refused "two schedules" "indexer_types reads FSFSS, index_topk_pattern reads FSSFS" "$work/broken"
cp "$model/config.json" "$work/broken"
truncate -s -1 "$work/broken/model.safetensors"
refused "truncated weights" "model.safetensors" "$work/broken"
status=0
"$indexcache" inspect "$model" --context 0 >"$work/out" 2>&1 || status=$?
[ "$status" = 2 ] || fail "--context 0: exit status $status"
