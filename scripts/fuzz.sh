#!/usr/bin/env bash
# Builds the fuzz targets with coverage and runs each for a while, on the compiler that the rest is built with: what cargo-fuzz
# adds, the address sanitizer, needs a nightly one, and there is no `unsafe` in what is tried here.
#   scripts/fuzz.sh [TARGET…]   Environment: FUZZ_SECONDS (20) for each target.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-20}
targets=("$@")
if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)
fi
features=()
if [[ " ${targets[*]} " == *" jwt "* ]]; then features+=(--features gateway); fi
if [[ " ${targets[*]} " == *" backup "* ]]; then features+=(--features backup); fi
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
# With a target named, the flags are not those of build scripts.
RUSTFLAGS="$coverage --cfg fuzzing -Ccodegen-units=1" cargo build --manifest-path fuzz/Cargo.toml --release --target "$host" \
    "${features[@]}" "${bins[@]}"
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    echo "== $target"
    "fuzz/target/$host/release/$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -max_total_time="$seconds" \
        -artifact_prefix="fuzz/artifacts/$target/" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 2>&1 | tail -8
done
