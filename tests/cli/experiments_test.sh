#!/usr/bin/env bash
# The experiments as a reader repeats them, on a small random model: every arm of every one runs, their results fit into one file, and
# every table can be made from them. Then the parts of their scripts alone.
#   experiments_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$work/model
python3 tests/support/make_text_model.py "$model" 4
python3 - "$work" <<'PYTHON'
import json, pathlib, random, sys
work = pathlib.Path(sys.argv[1])
words = (work / "model/text.txt").read_text().split()
random.seed(5)
for name in ("search", "test", "train"):
    with open(work / f"{name}.jsonl", "w") as file:
        for domain in ("austen", "code-go", "manpages"):
            file.write(json.dumps({"source": f"{domain}/1", "text": " ".join(random.choices(words, k=500))}) + "\n")
stages = [{"kind": kind, "learning_rate": 0.001, "phases": []} for kind in ("indexer", "sparse")]
(work / "distill.json").write_text(json.dumps({"stages": stages, "log_steps": 1, "export": {"dtype": "bf16"}}))
PYTHON

fail() {
  echo "FAILED: $*" >&2
  tail -n 3 "$work"/scratch/logs/*.log >&2 || true
  exit 1
}

run() {
  python3 experiments/run.py "$@" --indexcache "$indexcache" --model "$model" --out "$work/out" --work "$work/scratch" --jobs 2 --threads 1 \
    --data "$work/train.jsonl" --bundle "$work/bundle.tar.gz" --scale 0.01 --set context=450 --set search_text="$work/search.jsonl" \
    --set test_text="$work/test.jsonl" --set config="$work/distill.json" --set warmup_tokens=900 --set sparse_tokens=900 --set "seeds=[2]" --set calibration.largest=3
}
run search overlap topk transfer calibration > "$work/report" || fail "$(grep -v 'starts\|done' "$work/report")"
run distill alternate --patterns "$work/out" > "$work/report" || fail "$(grep -v 'starts\|done' "$work/report")"
[ -z "$(find "$work/scratch" -name '*.safetensors' -path '*uniform*')" ] || fail "models that were judged are still there"
if run alternate > "$work/report" 2>&1; then fail "alternate ran without distill"; fi
grep -q "name both" "$work/report" || fail "$(cat "$work/report")"

# Unpacked from the one file, the results make every table.
mkdir "$work/unpacked"
tar -xzf "$work/bundle.tar.gz" -C "$work/unpacked"
sed "s|bench/results/[^ ]*|$work/unpacked|" docs/experiments.md > "$work/tables.md"
python3 experiments/tables.py "$work/tables.md" || fail "no tables"
! grep -q "Not run yet" "$work/tables.md" || fail "a table has no results: $(grep -B 1 "Not run yet" "$work/tables.md")"

python3 experiments/tables.py --check || fail "the tables of docs/experiments.md are not those of its results"
python3 -m unittest discover -s tests/experiments -p '*_test.py' > "$work/unit" 2>&1 || { cat "$work/unit" >&2; exit 1; }
