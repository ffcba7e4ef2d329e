#!/usr/bin/env bash
# Compiles the kernels and the Torch-free files of the ops for 64-bit Arm, and looks for NEON code in what comes out:
#   tools/check_arm.sh JOBS
# It compiles alone: nothing here can run the result.
set -euo pipefail
cd "$(dirname "$0")/.."

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
sources=(src/indexcache/kernels/*.cpp src/indexcache/ops/*/*_{ref,cpu,highway,avx512_bf16}.cpp)
compile() {
  aarch64-linux-gnu-g++ -std=c++20 -O1 -Wall -Wextra -Werror -Wno-unknown-pragmas -DHWY_SHARED_DEFINE -Isrc \
    -c "$2" -o "$1/$(basename "$2" .cpp).o"
}
export -f compile
printf '%s\n' "${sources[@]}" | xargs -P "${1:-1}" -I{} bash -c 'compile "$@"' compile "$objects" {}

# Highway puts each instruction set's functions into a namespace of its name; an empty object would compile, too.
neon=0
for source in $(grep -l 'HWY_EXPORT' "${sources[@]}"); do
  aarch64-linux-gnu-nm -C "$objects/$(basename "$source" .cpp).o" | grep '::N_NEON' >/dev/null ||
    { echo "check_arm: $source: expected NEON code in its object, found none" >&2; exit 1; }
  neon=$((neon + 1))
done
[ "$neon" -gt 0 ] || { echo "check_arm: no file with HWY_EXPORT found" >&2; exit 1; }
echo "check_arm: ${#sources[@]} files compile for 64-bit Arm, $neon of them hold NEON code"
