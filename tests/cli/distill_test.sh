#!/usr/bin/env bash
# indexcache distill as a user runs it: the result carries its schedule and runs under it; options do what they say; bad input
# is one clear line and leaves no model.
#   distill_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
tokenizer=tests/golden/tokenizer/glm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

vocab=$(python3 -c 'import json, sys
t = json.load(open(sys.argv[1]))
print(1 + max([*t["model"]["vocab"].values(), *(a["id"] for a in t["added_tokens"])]))' "$tokenizer/tokenizer.json")
cat > "$work/train.json" <<JSON
{"model": {"model_type": "glm_moe_dsa", "vocab_size": $vocab, "hidden_size": 64, "num_hidden_layers": 4,
           "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
           "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
           "index_n_heads": 2, "index_head_dim": 32, "index_topk": 16,
           "intermediate_size": 64, "moe_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse", "dense", "dense"],
           "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
           "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rms_norm_eps": 1e-6,
           "max_position_embeddings": 128, "tie_word_embeddings": false},
 "stages": [{"kind": "lm", "learning_rate": 0.01, "phases": [{"context": 128, "sequences": 2, "tokens": 1500}]}]}
JSON
cat > "$work/distill.json" <<'JSON'
{"seed": 3, "log_steps": 2, "checkpoint_steps": 2,
 "stages": [
   {"kind": "indexer", "learning_rate": 0.01, "phases": [{"context": 128, "sequences": 2, "tokens": 1500}]},
   {"kind": "sparse", "learning_rate": 0.001, "phases": [{"context": 128, "sequences": 2, "tokens": 1500}]}]}
JSON
cat docs/*.md > "$work/text.txt"
cat README.md > "$work/test.txt"
"$indexcache" train "$work/train.json" --data "$work/text.txt" --tokenizer "$tokenizer" --out "$work/run" --threads 1 \
  > /dev/null 2> "$work/log" || fail "training failed: $(tail -n 1 "$work/log")"
model=$work/run/model

distill() { # distill OUT PATTERN [OPTION...]
  local out=$1 pattern=$2
  shift 2
  "$indexcache" distill "$model" --pattern "$pattern" --config "$work/distill.json" --data "$work/text.txt" \
    --out "$work/$out" --threads 1 "$@"
}
key() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1])).get(sys.argv[2]))' "$work/$1/model/config.json" "$2"; }

distill nearest FSFS --test "$work/test.txt" > "$work/out" 2> "$work/log" || fail "distill failed: $(tail -n 1 "$work/log")"
grep -q "loss on .*16 sequences of 128: .* under FSFS" "$work/out" || fail "no loss: $(cat "$work/out")"
[ "$(tail -n 1 "$work/out")" = "$work/nearest/model" ] || fail "the model's folder is not said"
[ "$(key nearest index_topk_pattern)" = FSFS ] || fail "the schedule is $(key nearest index_topk_pattern)"
"$indexcache" inspect "$work/nearest/model" > "$work/inspected" || fail "inspect"
grep -q FSFS "$work/inspected" || fail "inspect does not see the schedule"

distill routed -1,-1,0,1 > /dev/null 2> "$work/log" || fail "routed: $(tail -n 1 "$work/log")"
grep -q "notice: .*indexcache_sources" "$work/log" || fail "no notice of a routed pattern"
[ "$(key routed index_topk_pattern)" = None ] || fail "F/S keys for a routed pattern"
[ "$(key routed indexcache_sources)" = "[-1, -1, 0, 1]" ] || fail "no sources"
distill both -1,-1,0,1 --as-nearest --test "$work/test.txt" --indexer-only --drop-unused > "$work/out" 2> "$work/log" ||
  fail "as nearest: $(tail -n 1 "$work/log")"
grep -q "under -1,-1,0,1" "$work/out" || fail "no loss of the routed pattern: $(cat "$work/out")"
grep -q "under FFSS" "$work/out" || fail "no loss of the nearest pattern: $(cat "$work/out")"
[ "$(key both index_topk_pattern)" = FFSS ] || fail "no F/S keys"
grep -q '"stage":"sparse-indexer"' "$work/both/curves.jsonl" || fail "--indexer-only changed nothing"
"$indexcache" eval "$work/both/model" --text "$work/test.txt" --context 128 --max-windows 2 --prompts 0 > /dev/null ||
  fail "the result does not run"

# A kill, then a resumed run: the same bits.
(exec "$indexcache" distill "$model" --pattern FSFS --config "$work/distill.json" --data "$work/text.txt" --out "$work/killed" \
  --threads 1 > /dev/null 2> "$work/log") &
pid=$!
while kill -0 $pid 2> /dev/null && [ ! -e "$work/killed/checkpoint.safetensors" ]; do sleep 0.02; done
kill -9 $pid 2> /dev/null || fail "the run ended before it could be killed"
wait $pid 2> /dev/null || true
distill killed FSFS --resume > /dev/null 2> "$work/log" || fail "resume: $(tail -n 1 "$work/log")"
for file in "$work"/nearest/model/*; do
  cmp "$file" "$work/killed/model/$(basename "$file")" || fail "a kill changed $(basename "$file")"
done

# Two processes, as torchrun starts them, compute what one does but for the order of sums. In fp32 the loss of a step sums
# 256 tokens' terms, so two orders differ by at most 256 u = 1.6e-5 of it (u = 2^-24), a gradient likewise; with Adam's eps far
# above the gradients, a step moves a weight by at most rate / eps times what its gradient differs by, which six steps of
# rate .01, eps .01 keep below 1e-3 of the loss. Processes that summed or weighted wrongly would differ in the first digit.
sed 's/"seed": 3/"seed": 3, "optimizer": {"eps": 0.01}/; s/"log_steps": 2/"log_steps": 1/; s/"sequences": 2/"sequences": 3/' \
  "$work/distill.json" > "$work/group.json"
sed -i 's/"checkpoint_steps": 2/"checkpoint_steps": 2, "data": {"retrieval_share": 0.4, "keys": [1, 2], "answer_weight": 4}/' "$work/group.json"
one() { # one OUT [OPTION...]: of a group, or alone
  local out=$1
  shift
  "$indexcache" distill "$model" --pattern -1,-1,0,1 --config "$work/group.json" --data "$work/text.txt" --out "$work/$out" \
    --threads 1 "$@"
}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$port WORLD_SIZE=2
RANK=1 one group > "$work/out1" 2> "$work/log1" &
pid=$!
RANK=0 one group > "$work/out" 2> "$work/log" || fail "rank 0: $(tail -n 1 "$work/log")"
wait $pid || fail "rank 1: $(tail -n 1 "$work/log1")"
[ ! -s "$work/out1" ] && [ ! -s "$work/log1" ] || fail "both processes speak"
WORLD_SIZE=4 RANK=9 one x > /dev/null 2> "$work/log" && fail "rank 9 of 4"
grep -q "RANK" "$work/log" || fail "no word of RANK: $(cat "$work/log")"
unset MASTER_ADDR MASTER_PORT WORLD_SIZE
one alone > /dev/null 2> "$work/log" || fail "alone: $(tail -n 1 "$work/log")"
python3 - "$work/alone/curves.jsonl" "$work/group/curves.jsonl" <<'PYTHON' || fail "two processes differ from one"
import json, sys
alone, group = ([json.loads(line) for line in open(path)] for path in sys.argv[1:])
assert len(alone) == len(group) >= 6, (len(alone), len(group))
for step, (a, b) in enumerate(zip(alone, group)):
    bound = 1.6e-5 if step == 0 else 1e-3
    for key in ("loss", "answer_loss", "kl", "grad_norm"):
        ours, theirs = (x.get(key, []) for x in (a, b))
        ours, theirs = (x if isinstance(x, list) else [x] for x in (ours, theirs))
        assert len(ours) == len(theirs)
        for x, y in zip(ours, theirs):
            assert abs(x - y) <= bound * abs(x) + 1e-7, (step, key, x, y)
    assert a.get("expert_load") == b.get("expert_load") or step > 0, step
assert any("answer_loss" in x for x in alone)
PYTHON
[ -e "$work/group/model/model.safetensors" ] || fail "the group left no model"

# refused PATTERN OPTION...: exit code 1 and one line that matches.
refused() {
  local pattern=$1 code=0
  shift
  "$@" > /dev/null 2> "$work/error" || code=$?
  [ $code -eq 1 ] || fail "exit code $code instead of 1: $*"
  grep -v -e ' tokens of text$' -e '^stage ' -e 'indexcache: notice: ' "$work/error" > "$work/lines" || true
  [ "$(wc -l < "$work/lines")" -eq 1 ] || fail "not one line: $(cat "$work/error")"
  grep -q -e "$pattern" "$work/lines" || fail "expected '$pattern': $(cat "$work/lines")"
}
refused "4 layers" distill x FSF
refused "(or --resume)" distill nearest FSFS
refused "same config" distill killed FSSS --resume
refused "--test FILE" distill x FSFS --as-nearest
model=$work/both/model refused "none in layer 2, 3" distill x FFFF
sed 's/"seed": 3/"model": {}/' "$work/distill.json" > "$work/bad.json"
refused 'bad.json: model' "$indexcache" distill "$model" --pattern FSFS --config "$work/bad.json" --data "$work/text.txt" --out "$work/x"
sed 's/0.001/1e30/; s/0.01/1e30/' "$work/distill.json" > "$work/bad.json"
refused diverged "$indexcache" distill "$model" --pattern FSFS --config "$work/bad.json" --data "$work/text.txt" --out "$work/x" --threads 1
model=tests/golden/models/deepseek_interleaved refused "or --force" distill x uniform:1/2 --drop-unused
[ ! -e "$work/x/model" ] || fail "a refused run left a model"
echo "distill: nearest, routed, resumed, refused"
