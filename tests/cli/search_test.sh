#!/usr/bin/env bash
# indexcache search and overlap as a user runs them: every strategy, resuming after kill -9, bad inputs.
#   search_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$work/model
python3 tests/support/make_text_model.py "$model" 6
text=(--text "$model/text.txt" --context 96 --sequences 5)

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# refused WORDS COMMAND...: fails with one line on stderr that holds WORDS, and leaves no file, nor a journal.
refused() {
  local words=$1
  shift
  if "$@" >"$work/stdout" 2>"$work/stderr"; then fail "accepted: $*"; fi
  grep -qF -- "$words" "$work/stderr" || fail "$* said: $(cat "$work/stderr")"
  [ "$(wc -l <"$work/stderr")" -eq 1 ] || fail "$* said more than a line: $(cat "$work/stderr")"
  [ ! -e "$work/refused.json" ] || fail "$* left a file"
  [ -z "$(find "$work" -maxdepth 1 -name '*.journal')" ] || fail "$* left a journal"
}

# --- Every strategy leaves a pattern file; the exact ones measure what they must.
for strategy in greedy lazy forward routed routed-lazy similarity screened; do
  "$indexcache" search "$model" "${text[@]}" --strategy $strategy --out "$work/$strategy.json" >"$work/$strategy.txt" 2>/dev/null
  [ ! -e "$work/$strategy.json.journal" ] || fail "$strategy left its journal"
done
"$indexcache" search "$model" "${text[@]}" --strategy blocked --blocks 2 --out "$work/blocked.json" >/dev/null 2>&1
"$indexcache" search "$model" "${text[@]}" --strategy descent --start "$work/greedy.json:1/2" --out "$work/descent.json" \
  --compare "$work/routed.json" >"$work/descent.txt" 2>"$work/descent.log"
! grep -q notice "$work/descent.log" || fail "a notice on the same model: $(cat "$work/descent.log")"
grep -q "^agreement with .*routed.json (routed): the same sources at [01] of 1 budgets" "$work/descent.txt" || fail "no agreement"
grep -q "^greedy: 15 evaluations" "$work/greedy.txt" || fail "greedy of 6 layers is 15 evaluations: $(cat "$work/greedy.txt")"
grep -q "^routed: 35 evaluations" "$work/routed.txt" || fail "routed of 6 layers is 35 evaluations"
grep -q "^similarity: 5 evaluations" "$work/similarity.txt" || fail "similarity of 6 layers is one evaluation a budget"
# Screening: 6 layers, 5 of them once more with a gradient; their 5 own attentions and 15 others.
grep -q "^screened: 5 evaluations, [0-9]* layer runs and 20 attentions a sequence" "$work/screened.txt" ||
  fail "screened of 6 layers is one evaluation a budget: $(cat "$work/screened.txt")"
python3 - "$work" <<'PYTHON'
import json, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
greedy, routed, descent = read("greedy"), read("routed"), read("descent")
assert [b["count"] for b in greedy["budgets"]] == [5, 4, 3, 2, 1]
assert greedy["budgets"][0]["loss"] >= routed["budgets"][0]["loss"]
assert all(set(b["pattern"]) <= set("FS") for b in greedy["budgets"])
assert abs(greedy["start"]["loss"] - routed["start"]["loss"]) == 0
assert [b["count"] for b in descent["budgets"]] == [3]
assert descent["budgets"][0]["loss"] <= descent["start"]["loss"]
# Similarity: a nearest pattern at every budget; one that leaves no choice is greedy's.
similarity = read("similarity")
assert similarity["strategy"] == "similarity", similarity["strategy"]
assert [b["count"] for b in similarity["budgets"]] == [5, 4, 3, 2, 1]
assert all(set(b["pattern"]) <= set("FS") for b in similarity["budgets"])
assert similarity["budgets"][-1] == greedy["budgets"][-1]
assert similarity["start"] == greedy["start"]
# Screened: true losses of its own patterns, and its gradient among the layer runs.
screened = read("screened")
assert screened["strategy"] == "screened" and screened["attention_runs"] == 20, screened
assert [b["count"] for b in screened["budgets"]] == [5, 4, 3, 2, 1]
assert screened["budgets"][-1] == greedy["budgets"][-1]
assert screened["start"] == greedy["start"]
assert 6 + 3 * 5 + 6 < screened["layer_runs"] <= 6 + 3 * 5 + 6 * 6, screened["layer_runs"]
assert "attention_runs" not in greedy
# Common prefixes ran once, and a pattern's loss does not depend on its company.
assert greedy["layer_runs"] < 16 * 6 and greedy["layer_run_share"] < 1
by_pattern = {str(b["sources"]): b["loss"] for b in greedy["budgets"]}
for other in ("lazy", "forward", "routed", "routed-lazy", "blocked", "similarity", "screened"):
    for budget in read(other)["budgets"]:
        assert by_pattern.get(str(budget["sources"]), budget["loss"]) == budget["loss"], other
PYTHON

# --- The same file from any number of threads, with and without carried states.
"$indexcache" search "$model" "${text[@]}" --threads 1 --out "$work/one.json" >/dev/null 2>&1
"$indexcache" search "$model" "${text[@]}" --threads 4 --out "$work/four.json" >/dev/null 2>&1
cmp "$work/one.json" "$work/four.json" || fail "the result depends on the threads"
for strategy in similarity screened; do
  for threads in 1 4; do
    "$indexcache" search "$model" "${text[@]}" --strategy $strategy --threads $threads --out "$work/$strategy$threads.json" >/dev/null 2>&1
    cmp "$work/$strategy.json" "$work/$strategy$threads.json" || fail "$strategy depends on the threads"
  done
done
"$indexcache" search "$model" "${text[@]}" --carry 0 --out "$work/uncarried.json" >/dev/null 2>&1
diff <(grep -v 'carried_bytes\|layer_run' "$work/one.json") <(grep -v 'carried_bytes\|layer_run' "$work/uncarried.json") ||
  fail "the result depends on carried states"

# --- Killed at any moment and started again, it leaves the same file.
journal=$work/killed.json.journal
journal_size() { stat -c %s "$journal" 2>/dev/null || echo 0; }
search_killed() { exec "$indexcache" search "$model" "${text[@]}" --strategy $strategy --out "$work/killed.json" >/dev/null 2>>"$work/killed.log"; }
RANDOM=5
for strategy in routed routed similarity screened; do
  started=$(date +%s%N)
  "$indexcache" search "$model" "${text[@]}" --strategy $strategy --out "$work/whole.json" >/dev/null 2>&1
  took_ms=$((($(date +%s%N) - started) / 1000000))
  kills=0
  for attempt in 1 2 3 4 5; do
    before=$(journal_size)
    # A subshell that becomes the command: the kill hits it, not a shell that waits for it.
    (search_killed) &
    search=$!
    # After a new measurement, so that every attempt goes on; and now and then before one.
    if [ $((attempt % 3)) -ne 0 ]; then
      while kill -0 $search 2>/dev/null && [ "$(journal_size)" -eq "$before" ]; do sleep 0.01; done
    fi
    delay_ms=$((RANDOM % (took_ms / 16 + 1)))
    sleep "$((delay_ms / 1000)).$(printf '%03d' $((delay_ms % 1000)))"
    kill -9 $search 2>/dev/null && kills=$((kills + 1))
    wait $search 2>/dev/null || true
    [ ! -e "$work/killed.json" ] || break
  done
  # A kill may also hit between the result and the journal's end.
  { [ -e "$work/killed.json" ] && [ ! -e "$journal" ]; } || (search_killed) || fail "not resumed: $(tail -n 1 "$work/killed.log")"
  cmp "$work/whole.json" "$work/killed.json" || fail "killed $kills times and resumed: another result"
  [ ! -e "$journal" ] || fail "a resumed search left its journal"
  rm "$work/killed.json"
done
resumes=$(grep -c "resuming from" "$work/killed.log") || true
[ "$resumes" -ge 4 ] || fail "only $resumes killed searches were resumed: too short for this test"

# --- Bad inputs: one clear line each, nothing left behind.
out=(--out "$work/refused.json")
: >"$work/empty.txt"
printf 'some text\n\xff\xfe more' >"$work/latin.txt"
refused "empty.txt" "$indexcache" search "$model" --text "$work/empty.txt" "${out[@]}"
refused "UTF-8" "$indexcache" search "$model" --text "$work/latin.txt" "${out[@]}"
refused "tokens" "$indexcache" search "$model" --text "$model/text.txt" --context 4000 --sequences 50 "${out[@]}"
refused "missing" "$indexcache" search "$model" "${text[@]}" --out "$work/missing/pattern.json"
refused "an earlier Full layer" "$indexcache" search "$model" "${text[@]}" --start=-1,0,1,-1,-1,-1 "${out[@]}"
refused "expected greedy, lazy, forward" "$indexcache" search "$model" "${text[@]}" --strategy best "${out[@]}"
refused "Full layers to keep" "$indexcache" search "$model" "${text[@]}" --keep 6 "${out[@]}"
refused "a start pattern with Shared layers" "$indexcache" search "$model" "${text[@]}" --strategy descent "${out[@]}"
refused "similarity: context: expected at least index_topk = 20 tokens, found 10" \
  "$indexcache" search "$model" --text "$model/text.txt" --context 10 --sequences 2 --strategy similarity "${out[@]}"
refused "screening: context: expected at least index_topk = 20 tokens, found 10" \
  "$indexcache" search "$model" --text "$model/text.txt" --context 10 --sequences 2 --strategy screened "${out[@]}"
refused "malformed JSON" "$indexcache" search "$model" "${text[@]}" --compare "$work/greedy.txt" "${out[@]}"
refused "a budget of 5, 4, 3, 2, 1" "$indexcache" search "$model" "${text[@]}" --strategy descent --start "$work/greedy.json" "${out[@]}"
mkdir "$work/foreign"
for contents in '{"journal": "indexcache search journal 1", "setup": {}}\n' 'notes\nmore'; do
  printf "$contents" >"$work/foreign/pattern.json.journal"
  refused "delete it to begin anew" "$indexcache" search "$model" "${text[@]}" --out "$work/foreign/pattern.json"
  cmp <(printf "$contents") "$work/foreign/pattern.json.journal" || fail "changed a foreign journal"
done
for option in --carry --tasks; do
  status=0
  "$indexcache" search "$model" "${text[@]}" "${out[@]}" $option nan >/dev/null 2>"$work/stderr" || status=$?
  [ $status -eq 2 ] && grep -q -e "$option" "$work/stderr" || fail "$option nan: $status, $(cat "$work/stderr")"
done

# Refused on the way: more than memory (whatever the context), and a start loss that is no number.
python3 - "$model" "$work/vast" "$work/broken" <<'PYTHON'
import json, os, pathlib, shutil, struct, sys
model, vast, broken = map(pathlib.Path, sys.argv[1:])
shutil.copytree(model, vast)
config = json.loads((vast / "config.json").read_text())
(vast / "config.json").write_text(json.dumps(config | {"index_topk": 2**31 - 1}))
shutil.copytree(model, broken)
data = bytearray((broken / "model.safetensors").read_bytes())
size = struct.unpack("<Q", data[:8])[0]
entry = json.loads(data[8:8 + size])["model.norm.weight"]
begin, end = (8 + size + offset for offset in entry["data_offsets"])
data[begin:end] = b"\xff" * (end - begin)
(broken / "model.safetensors").write_bytes(data)
PYTHON
refused "context of 96 tokens: " "$indexcache" search "$work/vast" "${text[@]}" "${out[@]}"
refused "context of 48 tokens: " "$indexcache" search "$work/vast" --text "$model/text.txt" --context 48 --sequences 5 "${out[@]}"
refused "a finite number" "$indexcache" search "$work/broken" "${text[@]}" "${out[@]}"
refused "a finite number" "$indexcache" search "$work/broken" "${text[@]}" --strategy screened "${out[@]}"

# A pattern file of another model: not to be compared if it has other layers, else with a notice.
python3 tests/support/make_text_model.py "$work/small" 4
refused "a pattern for 4 layers, found 6" "$indexcache" search "$work/small" "${text[@]}" --compare "$work/greedy.json" "${out[@]}"
"$indexcache" search "$work/small" "${text[@]}" --keep 3 --out "$work/small.json" >/dev/null 2>&1
sed '0,/"sha256": "./s//"sha256": "x/' "$work/small.json" >"$work/other.json"
"$indexcache" search "$work/small" "${text[@]}" --keep 3 --out "$work/small.json" --compare "$work/other.json" >"$work/stdout" 2>"$work/stderr"
grep -q "^indexcache: notice: .*other.json was searched on other model files" "$work/stderr" || fail "no notice: $(cat "$work/stderr")"
grep -q "the same sources at 1 of 1 budgets" "$work/stdout" || fail "no agreement with another model's file"

# --- Overlap.
"$indexcache" overlap "$model" "${text[@]}" --json "$work/overlap.json" --picture "$work/overlap.svg" >"$work/overlap.txt" 2>/dev/null
python3 - "$work" <<'PYTHON'
import json, sys
import xml.etree.ElementTree as xml
matrix = json.load(open(f"{sys.argv[1]}/overlap.json"))
overlap = matrix["overlap"]
assert matrix["top_k"] == 20 and matrix["layers"] == list(range(6))
assert matrix["queries"] == 5 * (96 - 19), matrix["queries"]
for i in range(6):
    assert overlap[i][i] == 1
    for j in range(6):
        assert overlap[i][j] == overlap[j][i] and 0 < overlap[i][j] <= 1
cells = [e for e in xml.parse(f"{sys.argv[1]}/overlap.svg").iter() if e.tag.endswith("title")]
assert len(cells) == 36
PYTHON
refused "at least index_topk = 20 tokens" "$indexcache" overlap "$model" --text "$model/text.txt" --context 10 --sequences 2

echo "search and overlap: passed"
