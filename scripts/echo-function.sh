#!/usr/bin/env bash
# Builds the static functions of the benchmarks: with musl where it is installed (it starts five times faster than a
# static glibc program), with the system's C library otherwise.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

compiler=cc
have musl-gcc && compiler=musl-gcc
# The Lambda package: AWS's own client beside the handler, as in any such package.
client="$ROOT/.tools/lambda/python"
[ -d "$client" ] && cp -r "$client"/. "$ROOT/loadtest/functions/lambda/"
for source in "$ROOT"/loadtest/functions/*/*.c; do
    program="${source%.c}"
    if [ "$program" -nt "$source" ]; then continue; fi
    "$compiler" -O2 -static -s -Wall -Wextra -o "$program.new" "$source"
    mv "$program.new" "$program"
    say "built ${program#"$ROOT"/} with $compiler"
done
