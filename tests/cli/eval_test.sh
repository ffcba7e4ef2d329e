#!/usr/bin/env bash
# indexcache eval as a user runs it: tables and JSON, patterns against the baseline, bad inputs.
#   eval_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$work/model
python3 tests/support/make_text_model.py "$model" 4
evaluate=("$indexcache" eval "$model" --threads 1 --context 64)

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# refused CODE WORDS COMMAND...: fails with the code and one line on stderr that holds WORDS; leaves no file.
refused() {
  local code=$1 words=$2 status=0
  shift 2
  "$@" >"$work/stdout" 2>"$work/stderr" || status=$?
  [ $status -eq "$code" ] || fail "$* ended with $status: $(cat "$work/stderr")"
  grep -qF -- "$words" "$work/stderr" || fail "$* said: $(cat "$work/stderr")"
  [ $code -eq 2 ] || [ "$(wc -l <"$work/stderr")" -eq 1 ] || fail "$* said more than a line: $(cat "$work/stderr")"
  [ ! -e "$work/refused.json" ] || fail "$* left a file"
}

# --- Figures: every byte of the text is scored once; all-Full is the baseline; the same again.
printf '{"source": "a/1", "text": "the rabbit and the h\\u00e4mmer"}\n{"source": "b/1", "text": "%s"}\n' \
  "$(head -c 700 "$model/text.txt")" >"$work/documents.jsonl"
for run in one two; do
  "${evaluate[@]}" --text "$work/documents.jsonl" --windows all --tasks-lengths 400,450 --prompts 2 --pattern full \
    --pattern uniform:1/2 --pattern=-1,-1,0,1 --json "$work/$run.json" >"$work/$run.txt" 2>"$work/$run.progress"
done
cmp "$work/one.txt" "$work/two.txt" || fail "two runs differ"
grep -q "^eval: .*took" "$work/one.progress" || fail "no progress: $(cat "$work/one.progress")"
grep -q "^  uniform:1/2 .*2 of 4 Full" "$work/one.txt" || fail "no such pattern in $(cat "$work/one.txt")"
python3 - "$work" <<'PYTHON'
import json, sys
one, two = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("one", "two"))
assert one["patterns"] == two["patterns"]
assert one["text"]["bytes"] == len("the rabbit and the hämmer".encode()) + 700
assert one["provenance"]["command"].startswith("indexcache eval")
baseline, full, half, routed = one["patterns"]
assert (baseline["pattern"], half["pattern"], routed["pattern"]) == ("FFFF", "FSFS", "-1,-1,0,1")
assert full["language"]["loss_difference"] == {"value": 0.0, "standard_error": 0.0}
assert half["language"]["loss_difference"]["value"] != 0
assert full["language"]["loss"] == baseline["language"]["loss"]
value = lambda entry, key: entry["language"][key]["value"]
for entry in (half, routed):
    for key in ("loss", "bits_per_byte"):
        assert abs(value(entry, key) - value(baseline, key) - value(entry, key + "_difference")) < 1e-9
assert len(half["language"]["each"]["nll"]) == len(one["windows"]) == one["text"]["windows"]
assert [d["domain"] for d in baseline["language"]["by_domain"]] == ["a", "b"]
assert [(t["task"], t["context"], t["prompts"]) for t in half["tasks"]] == [
    (task, context, 2) for context in (400, 450) for task in ("single_needle", "multi_needle", "variable_tracking")]
PYTHON
"${evaluate[@]}" --text "$model/text.txt" --prompts 0 --max-windows 1 >"$work/few.txt" 2>/dev/null
grep -q "1 windows of up to 64 tokens" "$work/few.txt" || fail "not one window: $(cat "$work/few.txt")"
! grep -q Retrieval "$work/few.txt" || fail "retrieval without prompts"
"${evaluate[@]}" --text "$model/text.txt" --max-windows 1 --tasks-lengths 400,450 --prompts 2 --tasks multi_needle --json "$work/task.json" \
  >/dev/null 2>&1
python3 - "$work" <<'PYTHON'
import json, sys
few = json.load(open(f"{sys.argv[1]}/task.json"))["patterns"][0]["tasks"]
assert [(task["task"], task["context"]) for task in few] == [("multi_needle", 400), ("multi_needle", 450)]
PYTHON
refused 1 'retrieval task: expected single_needle, multi_needle, variable_tracking, found "needles"' \
  "${evaluate[@]}" --text "$model/text.txt" --tasks needles --json "$work/refused.json"
# k of every layer: the model's own changes nothing, another does.
own_k=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["index_topk"])' "$model/config.json")
for k in "$own_k,$own_k,$own_k,$own_k" "$own_k,2,$own_k,$own_k"; do
  "${evaluate[@]}" --text "$model/text.txt" --prompts 0 --max-windows 1 --index-topk "$k" >"$work/k-$k.txt" 2>/dev/null
done
cmp "$work/few.txt" "$work/k-$own_k,$own_k,$own_k,$own_k.txt" || fail "the model's own k changes figures"
! cmp -s "$work/few.txt" "$work/k-$own_k,2,$own_k,$own_k.txt" || fail "k of layer 1 changes nothing"

# --- Bad inputs.
: >"$work/empty.txt"
printf 'good \xff bad' >"$work/binary.txt"
printf '{"text": "a"}\n{"text": 1}\n' >"$work/wrong.jsonl"
into=(--json "$work/refused.json")
text=(--text "$model/text.txt" --prompts 1)
refused 1 "empty.txt: expected text, found none" "${evaluate[@]}" --text "$work/empty.txt" "${into[@]}"
refused 1 "found byte 0xff at byte offset 5" "${evaluate[@]}" --text "$work/binary.txt" "${into[@]}"
refused 1 "wrong.jsonl: line 2" "${evaluate[@]}" --text "$work/wrong.jsonl" "${into[@]}"
refused 1 "missing.txt" "${evaluate[@]}" --text "$work/missing.txt" "${into[@]}"
refused 1 "layer 2" "${evaluate[@]}" "${text[@]}" "${into[@]}" --pattern=-1,0,1,0
refused 1 "layers" "${evaluate[@]}" "${text[@]}" "${into[@]}" --pattern FSF
refused 1 "the folder" "${evaluate[@]}" "${text[@]}" --json "$work/nowhere/refused.json"
refused 1 "a context of at least" "${evaluate[@]}" "${text[@]}" "${into[@]}" --tasks-lengths 20
refused 1 "expected 4 positive integers, found 16,16" "${evaluate[@]}" "${text[@]}" "${into[@]}" --index-topk 16,16
refused 2 "--text" "${evaluate[@]}"
refused 2 "--windows" "${evaluate[@]}" "${text[@]}" --windows some
# Weights that are not finite: no table of nan. Every window's first token is the end of text.
cp -r "$model" "$work/broken"
python3 tests/support/break_embedding.py "$work/broken" 256
refused 1 "the loss at position 0: expected a finite number, found nan" "$indexcache" eval "$work/broken" --threads 1 \
  --context 64 --text "$model/text.txt" --prompts 0 "${into[@]}"
# More than memory: the notice about the model's context, then one line.
status=0
"${evaluate[@]}" "${text[@]}" "${into[@]}" --tasks-lengths 9000000000 >/dev/null 2>"$work/stderr" || status=$?
[ $status -eq 3 ] || fail "a context larger than memory ended with $status"
grep -q "^indexcache: context of 9000000000 tokens: .*bytes" "$work/stderr" || fail "said: $(cat "$work/stderr")"
[ ! -e "$work/refused.json" ] || fail "left a file"
