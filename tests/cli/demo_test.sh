#!/usr/bin/env bash
# tools/demo.sh as make demo runs it, with a command that only says what it is asked to do: its three steps, its errors.
#   demo_test.sh INDEXCACHE      (in the source folder; the command itself is not run)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tools" "$work/models"
cp tools/demo.sh "$work/tools"

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# refused WORDS: the demo ends before any step, with this line on stderr.
refused() {
  if bash "$work/tools/demo.sh" /bin/echo >"$work/stdout" 2>"$work/stderr"; then fail "expected \"$1\", found success"; fi
  [ "$(cat "$work/stderr")" = "demo: $1" ] && [ ! -s "$work/stdout" ] || fail "said: $(cat "$work/stdout" "$work/stderr")"
}

refused "expected one model folder under models/, found 0"
for model in a b; do
  mkdir "$work/models/$model"
  touch "$work/models/$model/config.json"
done
refused "expected one model folder under models/, found 2: models/a models/b"

rm -r "$work/models/b"
bash "$work/tools/demo.sh" /bin/echo >"$work/stdout" || fail "the demo failed: $(cat "$work/stdout")"
for verb in search eval bench; do
  [ "$(grep -c "^$verb models/a " "$work/stdout")" -eq 1 ] || fail "expected $verb of models/a once: $(cat "$work/stdout")"
done
# Cost and gain are shown for the same patterns.
patterns() { grep "^$1 " "$work/stdout" | grep -o -- '--pattern [^ ]*'; }
[ "$(patterns eval)" = "$(patterns bench)" ] || fail "eval and bench run other patterns: $(cat "$work/stdout")"
