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

# --- Under another pattern: the flags and keys that make engines follow it, and its memory. small-dsa has all indexers.
small=models/small-dsa
"$indexcache" inspect "$small" --pattern uniform:1/4 >"$work/text"
for line in "Schedule: 4 of 16 layers Full" "vLLM               the same (index_topk_pattern)" "transformers       the same (indexer_types)" \
  "--hf-overrides '{\"use_index_cache\":true,\"index_topk_pattern\":\"FSSSFSSSFSSSFSSS\"}'" \
  "--json-model-override-args '{\"use_index_cache\":true,\"index_topk_pattern\":\"FSSSFSSSFSSSFSSS\"}'"; do
  grep -qF -- "$line" "$work/text" || fail "no \"$line\" under uniform:1/4: $(cat "$work/text")"
done
grep -q "To serve it" <("$indexcache" inspect "$small") && fail "flags for a schedule that nobody asked for"
"$indexcache" inspect "$small" --pattern uniform:1/4 --context 1000 --json >"$work/json"
"$indexcache" inspect "$small" --pattern=-1,0,0,-1,0,0,0,0,0,0,0,0,0,0,0,3 --json >"$work/routed"
python3 - "$work/json" "$work/routed" <<'PYTHON'
import json, sys

nearest, routed = (json.load(open(path)) for path in sys.argv[1:])
schedule = nearest["schedule"]
assert schedule["num_full"] == 4 and all(reading["same"] for reading in schedule["readings"] if reading["reader"] in ("vLLM", "SGLang", "transformers"))
assert schedule["config"] == {"index_topk_pattern": "FSSS" * 4, "indexer_types": ["full", "shared", "shared", "shared"] * 4}
assert schedule["flags"]["SGLang"]["value"]["index_topk_pattern"] == "FSSS" * 4
assert nearest["memory"]["cache_bytes"] == 1000 * 2 * (16 * (512 + 64) + 4 * 128)
unused = next(part for part in nearest["parts"] if "unused" in part["part"])
assert nearest["parameters"]["stored"] - nearest["parameters"]["model"] == unused["parameters"] > 0
assert routed["schedule"]["flags"] == {} and list(routed["schedule"]["config"]) == ["indexcache_sources"]
assert not any(reading["same"] for reading in routed["schedule"]["readings"])
PYTHON
refused "a pattern that keeps a missing indexer" "pattern FFSSS: expected indexer weights in every Full layer, found none in layers 1" "$model" --pattern FFSSS
refused "a pattern of another length" "FSS" "$small" --pattern FSS

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
