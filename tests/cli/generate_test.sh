#!/usr/bin/env bash
# indexcache generate as a user runs it: streams text, stops, samples by the seed; bad prompts.
#   generate_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$work/model
python3 tests/support/make_text_model.py "$model" 3
generate=("$indexcache" generate "$model" --threads 1)

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

refused() {
  local code=$1 words=$2 status=0
  shift 2
  "$@" >"$work/stdout" 2>"$work/stderr" || status=$?
  [ $status -eq "$code" ] || fail "$* ended with $status: $(cat "$work/stderr")"
  grep -qF -- "$words" "$work/stderr" || fail "$* said: $(cat "$work/stderr")"
  [ ! -s "$work/stdout" ] || fail "$* wrote text"
}

"${generate[@]}" --prompt "the needle is" --max-tokens 24 >"$work/greedy" 2>"$work/rates"
grep -Eq "^prompt: 13 tokens, [0-9.]+ tokens/s; generated: [0-9]+ tokens, [0-9.]+ tokens/s; ended by" "$work/rates" ||
  fail "rates: $(cat "$work/rates")"
[ -s "$work/greedy" ] || fail "no text"
python3 -c 'import sys; open(sys.argv[1], encoding="utf-8").read()' "$work/greedy" || fail "no UTF-8"
printf 'the needle is' >"$work/prompt"
"${generate[@]}" --prompt-file "$work/prompt" --max-tokens 24 >"$work/from_file" 2>/dev/null
cmp "$work/greedy" "$work/from_file" || fail "a prompt from a file gives other text"

sample=("${generate[@]}" --prompt "the" --max-tokens 24 --temperature 1.5 --top-p 0.9 --top-k 100 --pattern FSS)
"${sample[@]}" --seed 1 >"$work/seed1" 2>/dev/null
"${sample[@]}" --seed 1 >"$work/again" 2>/dev/null
"${sample[@]}" --seed 2 >"$work/seed2" 2>/dev/null
cmp "$work/seed1" "$work/again" || fail "the same seed gives other text"
! cmp -s "$work/seed1" "$work/seed2" || fail "another seed gives the same text"
"${generate[@]}" --prompt "the needle is" --max-tokens 24 --temperature 1 --top-k 1 --seed 9 >"$work/likeliest" 2>/dev/null
cmp "$work/greedy" "$work/likeliest" || fail "--top-k 1 is not greedy"

# --json: the same text and what a machine would ask of it; nothing on stderr.
"${generate[@]}" --prompt "the needle is" --max-tokens 24 --pattern FSS --json >"$work/json" 2>"$work/stderr"
[ ! -s "$work/stderr" ] || fail "--json said: $(cat "$work/stderr")"
"${generate[@]}" --prompt "the needle is" --max-tokens 24 --pattern FSS >"$work/text" 2>/dev/null
python3 - "$work" "$model" <<'PYTHON'
import json, sys
result = json.load(open(f"{sys.argv[1]}/json"))
assert result["model"] == sys.argv[2] and result["pattern"] == "FSS" and result["prompt"] == "the needle is"
assert result["text"] + "\n" == open(f"{sys.argv[1]}/text", encoding="utf-8").read()
assert len(result["prompt_token_ids"]) == 13 and 0 < len(result["token_ids"]) <= 24
assert all(type(token) is int for token in result["prompt_token_ids"] + result["token_ids"])
assert (result["ended_by"] == "max_tokens") == (len(result["token_ids"]) == 24) or result["ended_by"] == "model"
assert result["prefill_tokens_per_second"] > 0 and result["decode_tokens_per_second"] > 0
assert result["provenance"]["command"].startswith("indexcache generate")
PYTHON

: >"$work/empty"
printf 'ab\xc3' >"$work/binary"
refused 1 "--prompt: expected text, found none" "${generate[@]}" --prompt ""
refused 1 "empty: expected text, found none" "${generate[@]}" --prompt-file "$work/empty"
refused 1 "found byte 0xc3 at byte offset 2" "${generate[@]}" --prompt-file "$work/binary"
refused 1 "pattern" "${generate[@]}" --prompt x --pattern SFF
refused 1 "top_p" "${generate[@]}" --prompt x --top-p 0
refused 2 "prompt" "${generate[@]}"
refused 2 "prompt" "${generate[@]}" --prompt x --prompt-file "$work/prompt"
refused 1 "temperature: expected a finite number from 0, found -1" "${generate[@]}" --prompt x --temperature -1
refused 1 "temperature: expected a finite number from 0, found inf" "${generate[@]}" --prompt x --temperature inf
refused 3 "bytes" "${generate[@]}" --prompt x --max-tokens 900000000000
