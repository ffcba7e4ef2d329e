#!/usr/bin/env bash
# The main job, end to end on the bundled model: tools/demo.sh BUILD/indexcache. Searches a pattern that keeps a quarter of the
# indexers, shows what it costs on a text that the search never saw, then what it gains, both beside the uniform pattern of the same
# size. Leaves out/demo-pattern.json, out/demo-eval.json and out/demo-bench.json.
set -euo pipefail
cd "$(dirname "$0")/.."
indexcache=$1
configs=(models/*/config.json)
[ -f "${configs[0]}" ] || configs=()
[ ${#configs[@]} -eq 1 ] ||
  { echo "demo: expected one model folder under models/, found ${#configs[@]}${configs[*]:+: ${configs[*]%/config.json}}" >&2; exit 1; }
model=${configs[0]%/config.json}
mkdir -p out

step() { printf '\n== %s\n' "$*"; }

step "search: which quarter of the indexers to keep, by loss on texts/search.jsonl.xz"
"$indexcache" search "$model" --text texts/search.jsonl.xz --strategy lazy --context 2048 --sequences 4 --tasks 0.5 \
  --keep 1/4 --out out/demo-pattern.json
step "eval: what it costs on texts/test.jsonl.xz, beside the uniform pattern of the same size"
"$indexcache" eval "$model" --text texts/test.jsonl.xz --context 2048 --max-windows 8 --prompts 6 \
  --pattern out/demo-pattern.json:1/4 --pattern uniform:1/4 --json out/demo-eval.json
step "bench: what it gains, beside the uniform pattern of the same size"
"$indexcache" bench "$model" --pattern out/demo-pattern.json:1/4 --pattern uniform:1/4 --contexts 4096,16384 \
  --repeats 1 --decode-tokens 8 --json out/demo-bench.json
