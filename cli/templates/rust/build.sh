#!/usr/bin/env bash
# Builds the handler that flux.yaml names. With the musl target installed the binary is static and starts faster:
#   rustup target add x86_64-unknown-linux-musl && CARGO_BUILD_TARGET=x86_64-unknown-linux-musl ./build.sh
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --target-dir target "$@"
install -m 0755 "target/${CARGO_BUILD_TARGET:-.}/release/handler" handler
