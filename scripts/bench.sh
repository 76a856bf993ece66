#!/usr/bin/env bash
# `flux bench`, with what it compares with built first. Arguments are passed on.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
cargo build --release --quiet -p flux-yardstick
exec "$(target_dir)/release/flux" bench "$@"
