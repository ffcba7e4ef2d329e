#!/usr/bin/env bash
# The command as a whole: every verb is there, and errors have the exit codes that src/cli/main.cpp states.
set -uo pipefail
indexcache=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# expect CODE TEXT ARGUMENTS...: the exit code, and a text that the output holds.
expect() {
  local code=$1 text=$2 found
  shift 2
  "$indexcache" "$@" >"$folder/out" 2>"$folder/err" </dev/null
  found=$?
  if [ "$found" -ne "$code" ] || ! grep -qF -- "$text" "$folder/out" "$folder/err"; then
    echo "indexcache $*: expected exit code $code and \"$text\", found exit code $found and:"
    cat "$folder/out" "$folder/err"
    failures=$((failures + 1))
  fi
}

# expect_error TEXT ARGUMENTS...: bad input: exit code 1, nothing on stdout, one line on stderr.
expect_error() {
  local text=$1
  shift
  expect 1 "$text" "$@"
  if [ -s "$folder/out" ] || [ "$(wc -l <"$folder/err")" -ne 1 ] || ! grep -q '^indexcache: ' "$folder/err"; then
    echo "indexcache $*: expected one line on stderr alone, found:"
    cat "$folder/out" "$folder/err"
    failures=$((failures + 1))
  fi
}

verbs=$(sed -n 's/^void add_\([a-z]*\)(CLI::App.*{$/\1/p' src/cli/*.cpp)
[ -n "$verbs" ] || { echo "no verbs found in src/cli"; exit 1; }
expect 0 "Usage: " --help
expect 0 "indexcache, commit " --version
"$indexcache" --help >"$folder/help"
for verb in $verbs; do
  grep -q "^  $verb " "$folder/help" || { echo "indexcache --help: expected the verb $verb in its list"; failures=$((failures + 1)); }
  expect 0 "Usage: indexcache $verb" "$verb" --help
done

expect 2 "subcommand is required"
expect 2 "" nonsense
expect 2 "--out is required" trace "$folder" --ids x.json
model=tests/golden/models/glm_full
echo '[1, 2, 3]' >"$folder/ids.json"
expect 2 "fp64 not in {fp32,bf16}" trace "$model" --ids "$folder/ids.json" --out "$folder/out.safetensors" --dtype fp64
expect 2 "--dtype" inspect "$model" --dtype fp32 # reads headers alone: it has no such option

# Bad input, through every verb that opens a model. Such a verb takes ModelArguments or opens the checkpoint itself.
# open_model VERB FOLDER: the verb's line, all of it good but the model.
open_model() {
  local text=(--text README.md --context 64)
  case $1 in
    inspect) echo inspect "$2" ;;
    search) echo search "$2" "${text[@]}" --out "$folder/out.json" ;;
    overlap) echo overlap "$2" "${text[@]}" ;;
    eval) echo eval "$2" "${text[@]}" --json "$folder/out.json" ;;
    generate) echo generate "$2" --prompt x ;;
    bench) echo bench "$2" --json "$folder/out.json" ;;
    distill) echo distill "$2" --pattern full --config models/distill.json --data README.md --out "$folder/out.json" ;;
    trace) echo trace "$2" --ids "$folder/ids.json" --out "$folder/out.safetensors" ;;
    *) return 1 ;;
  esac
}
tokenizer=tests/golden/tokenizer/glm/tokenizer.json
mkdir "$folder/empty" "$folder/foreign" "$folder/hollow" "$folder/torn"
cp "$tokenizer" "$folder/foreign"
echo '{"model_type": "llama"}' >"$folder/foreign/config.json"
cp "$tokenizer" "$model/config.json" "$folder/hollow"
cp "$tokenizer" "$model/config.json" "$folder/torn"
head -c 100000 "$model/model.safetensors" >"$folder/torn/model.safetensors"
opening=0
for verb in $verbs; do
  grep -qE 'ModelArguments model;|Checkpoint::open' "src/cli/$verb.cpp" || continue
  opening=$((opening + 1))
  open_model "$verb" x >/dev/null || { echo "$verb opens a model, but $0 does not know how to run it"; failures=$((failures + 1)); continue; }
  # shellcheck disable=SC2046  # no argument holds a space
  expect_error "$folder/none" $(open_model "$verb" "$folder/none")
  expect_error "$folder/empty" $(open_model "$verb" "$folder/empty")
  expect_error "$folder/ids.json" $(open_model "$verb" "$folder/ids.json") # a file
  expect_error "found \"llama\"" $(open_model "$verb" "$folder/foreign")
  expect_error "$folder/hollow" $(open_model "$verb" "$folder/hollow")
  expect_error "$folder/torn/model.safetensors" $(open_model "$verb" "$folder/torn")
done
[ "$opening" -ge 8 ] || { echo "expected at least 8 verbs that open a model, found $opening"; failures=$((failures + 1)); }
expect_error "expected a model folder with a config.json" inspect "$folder/empty"

expect_error "expected" trace "$model" --ids "$folder/ids.json" --out "$folder/none/out.safetensors"
expect_error "pattern \"FSX\"" trace "$model" --ids "$folder/ids.json" --out "$folder/out.safetensors" --pattern FSX
printf '[1, 2' >"$folder/cut.json"
expect_error "$folder/cut.json" trace "$model" --ids "$folder/cut.json" --out "$folder/out.safetensors"
# A tokenizer with more ids than the model has, through every verb that reads both.
mkdir "$folder/mixed"
cp "$model"/{config.json,model.safetensors} tests/golden/tokenizer/glm/tokenizer.json "$folder/mixed"
for arguments in "search --out $folder/out.json" "overlap" "eval" "bench --contexts 64"; do
  expect_error "tokenizer.json: expected at most the model's 64 tokens" $arguments --text docs/DESIGN.md "$folder/mixed"
done
expect_error "tokenizer.json: expected at most the model's 64 tokens" generate "$folder/mixed" --prompt "a text"

for output in out.safetensors out.json; do
  [ ! -e "$folder/$output" ] || { echo "a failed verb left $output"; failures=$((failures + 1)); }
done

[ "$failures" -eq 0 ]
