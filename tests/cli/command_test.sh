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
"$indexcache" --help >"$folder/help"
for verb in $verbs; do
  grep -q "^  $verb " "$folder/help" || { echo "indexcache --help: expected the verb $verb in its list"; failures=$((failures + 1)); }
  expect 0 "Usage: indexcache $verb" "$verb" --help
done

expect 2 "subcommand is required"
expect 2 "" nonsense
expect 2 "--out is required" trace "$folder" --ids x.json
model=tests/golden/models/glm_full
expect 2 "fp64" inspect "$model" --dtype fp64

# Bad input, through every verb that opens a model.
expect_error "$folder/none" inspect "$folder/none"
mkdir "$folder/empty"
expect_error "expected a model folder with a config.json" inspect "$folder/empty"
echo '{"model_type": "llama"}' >"$folder/empty/config.json"
expect_error "llama" inspect "$folder/empty"
echo '[1, 2, 3]' >"$folder/ids.json"
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

[ ! -e "$folder/out.safetensors" ] || { echo "a failed trace left its output"; failures=$((failures + 1)); }

[ "$failures" -eq 0 ]
