#!/usr/bin/env bash
# indexcache train as a user runs it: killed with -9 again and again and resumed, it leaves the same bits as a run that
# nobody touched; bad input is one clear line and nothing half-written.
#   train_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
tokenizer=tests/golden/tokenizer/glm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

config() { # config TOKENS: three stages over a model of two layers
  cat <<JSON
{"model": {"model_type": "glm_moe_dsa", "vocab_size": $vocab, "hidden_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
           "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
           "index_n_heads": 2, "index_head_dim": 32, "index_topk": 16,
           "intermediate_size": 64, "moe_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse"],
           "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
           "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rms_norm_eps": 1e-6,
           "max_position_embeddings": 128, "tie_word_embeddings": false},
 "data": {"retrieval_share": 0.25, "keys": [1, 2]}, "log_steps": 4, "checkpoint_steps": 2,
 "stages": [
   {"kind": "lm", "learning_rate": 0.01, "phases": [{"context": 128, "sequences": 2, "tokens": $1},
                                                    {"context": 96, "sequences": 3, "tokens": $1}]},
   {"kind": "indexer", "learning_rate": 0.01, "phases": [{"context": 128, "sequences": 2, "tokens": $1}]},
   {"kind": "sparse", "learning_rate": 0.001, "phases": [{"context": 128, "sequences": 2, "tokens": $1}]}]}
JSON
}

vocab=$(python3 -c 'import json, sys
t = json.load(open(sys.argv[1]))
print(1 + max([*t["model"]["vocab"].values(), *(a["id"] for a in t["added_tokens"])]))' "$tokenizer/tokenizer.json")
config 3000 > "$work/run.json"
cat docs/*.md > "$work/text.txt"
train() { # train OUT [OPTION...]
  local out=$1
  shift
  "$indexcache" train "$work/run.json" --data "$work/text.txt" --tokenizer "$tokenizer" --out "$out" --threads 1 "$@"
}

started=$(date +%s%N)
train "$work/whole" > /dev/null 2> "$work/log" || fail "the run failed: $(tail -n 1 "$work/log")"
took_ms=$((($(date +%s%N) - started) / 1000000))

# A kill comes at a random moment after a new checkpoint, so that every round goes on; and now and then before it. Delays are
# shares of what the run takes: fixed ones outlast it on a fast machine.
RANDOM=1
out=$work/killed
kills=0
for round in $(seq 12); do
  before=$(stat -c %Y.%i "$out/checkpoint.safetensors" 2> /dev/null || true)
  # A subshell that becomes the command: the kill hits it, not a shell that waits for it.
  (exec "$indexcache" train "$work/run.json" --data "$work/text.txt" --tokenizer "$tokenizer" --out "$out" --threads 1 \
    --resume > /dev/null 2> "$work/log") &
  pid=$!
  if [ $((round % 3)) -ne 0 ]; then
    while kill -0 $pid 2> /dev/null &&
      [ "$(stat -c %Y.%i "$out/checkpoint.safetensors" 2> /dev/null || true)" = "$before" ]; do
      sleep 0.01
    done
  fi
  delay_ms=$((RANDOM % (took_ms / 8 + 1)))
  sleep "$((delay_ms / 1000)).$(printf '%03d' $((delay_ms % 1000)))"
  kill -9 $pid 2> /dev/null && kills=$((kills + 1))
  wait $pid 2> /dev/null || true
  [ -e "$out/model" ] && break
done
[ "$kills" -ge 3 ] || fail "only $kills kills hit: the run is too short for this test"
train "$out" --resume > /dev/null 2> "$work/log" || fail "the resumed run failed: $(tail -n 1 "$work/log")"
for file in "$work"/whole/model/*; do
  cmp "$file" "$out/model/$(basename "$file")" || fail "$kills kills changed $(basename "$file")"
done
steps() { python3 -c 'import json, sys; print([json.loads(line)["step"] for line in open(sys.argv[1])])' "$1"; }
[ "$(steps "$work/whole/curves.jsonl")" = "$(steps "$out/curves.jsonl")" ] || fail "the curves differ"

# refused PATTERN OPTION...: exit code 1 and one line that matches.
refused() {
  local pattern=$1 code=0
  shift
  "$@" > /dev/null 2> "$work/error" || code=$?
  [ $code -eq 1 ] || fail "exit code $code instead of 1: $*"
  grep -v ' tokens of text$' "$work/error" > "$work/lines" || true
  [ "$(wc -l < "$work/lines")" -eq 1 ] || fail "not one line: $(cat "$work/error")"
  grep -q -e "$pattern" "$work/lines" || fail "expected '$pattern': $(cat "$work/lines")"
}
refused "(or --resume)" train "$work/whole"
sed 's/"kind": "indexer"/"kind": "index"/' "$work/run.json" > "$work/bad.json"
refused 'stages\[1\]: kind' "$indexcache" train "$work/bad.json" --data "$work/text.txt" --tokenizer "$tokenizer" --out "$work/x"
printf '{"model": ' > "$work/bad.json"
refused bad.json "$indexcache" train "$work/bad.json" --data "$work/text.txt" --tokenizer "$tokenizer" --out "$work/x"
refused missing.txt "$indexcache" train "$work/run.json" --data "$work/missing.txt" --tokenizer "$tokenizer" --out "$work/x"
printf 'good\n\xff\n' > "$work/bad.txt"
refused UTF-8 "$indexcache" train "$work/run.json" --data "$work/bad.txt" --tokenizer "$tokenizer" --out "$work/x"
sed 's/"vocab_size": [0-9]*/"vocab_size": 64/' "$work/run.json" > "$work/bad.json"
refused "tokenizer.json: expected at most the model's 64 tokens" "$indexcache" train "$work/bad.json" --data "$work/text.txt" \
  --tokenizer "$tokenizer" --out "$work/x"
[ ! -e "$work/x/model" ] || fail "a refused run left a model"
echo "train: $kills kills, the same bits"
