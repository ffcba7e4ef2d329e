#!/usr/bin/env bash
# indexcache trace as a user runs it: what it writes equals the goldens, and every bad input is one clear line.
#   trace_test.sh INDEXCACHE      (in the source folder)
set -euo pipefail

indexcache=$1
goldens=tests/golden/models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# same TRACE EXPECTED: index sets equal, logits within 1e-4.   ids EXPECTED: its tokens as JSON.
cat > "$work/golden.py" <<'PYTHON'
import array, json, struct, sys

def read(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            kind = {"F32": "f", "I32": "i", "I64": "q"}[entry["dtype"]]
            tensors[name] = (entry["dtype"], entry["shape"], array.array(kind, data[8 + size + begin:8 + size + end]))
    return tensors

if sys.argv[1] == "ids":
    print(json.dumps(list(read(sys.argv[2])["tokens"][2])))
elif sys.argv[1] == "inputs":
    trace = read(sys.argv[2])
    for layer in sys.argv[3].split(","):
        (_, (tokens, heads, dim), q), (_, _, keys), (_, _, weights), (_, (_, k), sets) = (
            trace[f"{name}.{layer}"] for name in ("index_q", "index_keys", "index_weights", "index_set"))
        dot = lambda t, h, s: sum(q[(t * heads + h) * dim + d] * keys[s * dim + d] for d in range(dim))
        for t in range(k, tokens, 3):  # the sets of those before hold every token
            score = [sum(weights[t * heads + h] * max(0, dot(t, h, s)) for h in range(heads)) for s in range(t + 1)]
            best = sorted(sorted(range(t + 1), key=lambda s: -score[s])[:k])
            assert list(sets[t * k:(t + 1) * k]) == best, (layer, t)
else:
    trace, expected = read(sys.argv[2]), read(sys.argv[3])
    del expected["tokens"]
    assert trace.keys() == expected.keys(), (sorted(trace), sorted(expected))
    for name, (dtype, shape, values) in expected.items():
        assert trace[name][:2] == (dtype, shape), (name, trace[name][:2], (dtype, shape))
        if dtype == "I32":
            assert trace[name][2] == values, f"{name} differs"
        else:
            error = max(abs(a - b) for a, b in zip(trace[name][2], values))
            assert error <= 1e-4, f"{name} differs by {error}"
PYTHON

# matches NAME EXPECTED OPTION...: trace of the golden's tokens writes what transformers computed.
matches() {
  local name=$1 expected=$goldens/$1/$2
  shift 2
  python3 "$work/golden.py" ids "$expected" > "$work/ids.json"
  "$indexcache" trace "$goldens/$name" --ids "$work/ids.json" --out "$work/trace.safetensors" --threads 1 "$@" > "$work/stdout" ||
    fail "trace $name $*"
  python3 "$work/golden.py" same "$work/trace.safetensors" "$expected" || fail "trace $name $* differs from $expected"
}

matches glm_mixed expected.model.safetensors
matches glm_full expected.nearest.safetensors --pattern FSFS
matches glm_full expected.routed.safetensors --pattern=-1,-1,0,1
matches glm_latent_eps expected.model.safetensors --latent-norm-eps 1e-6
matches deepseek_fp8_ue8m0 expected.model.safetensors --dtype fp32

# What the indexers score with gives the sets; in chunks or not, other layers left out.
matches glm_full expected.nearest.safetensors --pattern FSFS
"$indexcache" trace "$goldens/glm_full" --ids "$work/ids.json" --out "$work/trace.safetensors" --pattern FSFS --index-inputs 0,2 > /dev/null
python3 "$work/golden.py" inputs "$work/trace.safetensors" 0,2 || fail "trace --index-inputs: other sets than index_q, index_keys and index_weights give"

# refuses STATUS PATTERN ARGUMENT...: exits with STATUS, says one line that matches PATTERN, leaves no output.
refuses() {
  local status=$1 pattern=$2 got=0
  shift 2
  rm -f "$work/out.safetensors"
  "$indexcache" trace "$@" > "$work/stdout" 2> "$work/stderr" || got=$?
  [ "$got" = "$status" ] || fail "trace $*: exit code $got instead of $status: $(cat "$work/stderr")"
  grep -qE -- "$pattern" "$work/stderr" || fail "trace $*: \"$(cat "$work/stderr")\" does not match \"$pattern\""
  [ "$status" = 2 ] || [ "$(wc -l < "$work/stderr")" = 1 ] || fail "trace $*: more than one line: $(cat "$work/stderr")"
  [ -z "$(find "$work" -name 'out.safetensors*')" ] || fail "trace $*: left a file"
}

model=$goldens/glm_full
out=(--out "$work/out.safetensors")
good=(--ids "$work/good.json")
echo '[0, 1, 63]' > "$work/good.json"

# bad_ids TEXT PATTERN
bad_ids() {
  printf '%s' "$1" > "$work/bad.json"
  refuses 1 "bad.json.*$2" "$model" --ids "$work/bad.json" "${out[@]}"
}
bad_ids '' 'expected a JSON array of token ids in \[0, 64\), found invalid JSON at byte'
bad_ids '[1, 2' 'found invalid JSON at byte'
bad_ids '{"ids": [1]}' 'found an object'
bad_ids '7' 'found 7'
bad_ids '[]' 'found no ids'
bad_ids '[1, 64]' 'element 1: expected a token id in \[0, 64\), found 64'
bad_ids '[-1]' 'element 0: .* found -1'
bad_ids '[1, 2.5]' 'element 1: .* found 2.5'
bad_ids '[1, 1e99]' 'element 1: .* found 1e'
bad_ids '[18446744073709551615]' 'element 0: .* found 18446744073709551615'
bad_ids '[[1, 2]]' 'element 0: .* found an array'
bad_ids '["1"]' 'element 0: .* found "1"'
bad_ids '[null]' 'element 0: .* found null'
bad_ids "[1, \"$(printf 'x%.0s' {1..500})\"]" 'found "xxx.*\.\.\.$'
bad_ids "$(printf '[%.0s' {1..100000})" 'invalid JSON'
truncate -s 200M "$work/huge.json"
refuses 1 'huge.json: expected at most [0-9]+ bytes, found 209715200' "$model" --ids "$work/huge.json" "${out[@]}"
refuses 1 'nowhere.json' "$model" --ids "$work/nowhere.json" "${out[@]}"
refuses 1 "$work" "$model" --ids "$work" "${out[@]}"

refuses 1 'nowhere' "$work/nowhere" "${good[@]}" "${out[@]}"
refuses 1 'nowhere' "$model" "${good[@]}" --out "$work/nowhere/out.safetensors"
refuses 1 "$work" "$model" "${good[@]}" --out "$work"
refuses 1 'nowhere' "$work/no_model_either" "${good[@]}" --out "$work/nowhere/out.safetensors" # before any work
refuses 1 'SFFF|layer 0' "$model" "${good[@]}" "${out[@]}" --pattern SFFF
refuses 1 '4' "$model" "${good[@]}" "${out[@]}" --pattern FSF
refuses 1 'indexer weights in every Full layer, found none in layers 1, 3, 4' "$goldens/glm_mixed" "${good[@]}" "${out[@]}" --pattern full
for eps in 0 -1e-6 nan inf; do
  refuses 1 'latent norm epsilon: expected a finite number above 0, found' "$model" "${good[@]}" "${out[@]}" "--latent-norm-eps=$eps"
done

# Weights that are not finite: the first position that reads them is named, whatever the layers make of it.
cp -r "$model" "$work/broken"
python3 tests/support/break_embedding.py "$work/broken" 1
refuses 1 'pattern FFFF: the logits at position 1: expected finite numbers' "$work/broken" "${good[@]}" "${out[@]}"
refuses 2 'dtype' "$model" "${good[@]}" "${out[@]}" --dtype fp64
refuses 2 'ids' "$model" "${out[@]}"
for layer in 1 4 -1; do
  refuses 1 "index-inputs: expected layers that are Full: 0, 2, found $layer" "$model" "${good[@]}" "${out[@]}" --pattern FSFS "--index-inputs=$layer"
done

echo "trace: all as expected"
