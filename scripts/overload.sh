#!/usr/bin/env bash
# Offers a Flux started for it five times what it can take, and prints tables in Markdown; arguments go to
# `yardstick overload` (such as --seconds 10 --only sync,async). Environment: DURABILITY (process, or fsync: accepting is
# then bound by the disk, and a generator on the same machine can offer five times of it).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
cargo build --release --quiet -p flux-yardstick
FLUX_KEY="$(new_key)"
data="$(data_dir "overload.$$")"
mkdir -p "$data"
chmod a+x "$(dirname "$data")"
functions="$(mktemp -d)"
start_flux "$data" "${FLUX_LISTEN:-127.0.0.1:7229}" "$FLUX_KEY" "$data.log" --tasks 32 --queue-durability "${DURABILITY:-process}"
trap 'stop_flux; rm -rf "$data" "$data.log" "$functions"' EXIT

# function NAME HANDLER YAML…: deploys it.
function_of() {
    local name="$1" handler="$2"
    shift 2
    mkdir "$functions/$name"
    cp "$handler" "$functions/$name/handler"
    chmod +x "$functions/$name/handler"
    printf '%s\n' "name: $name" "handler: handler" "resources: { cpu: 100, memory: 16 }" "$@" >"$functions/$name/flux.yaml"
    flux deploy "$functions/$name" >&2
}
printf '#!/bin/sh\nexec sleep 600\n' >"$functions/nap.sh"
function_of busy loadtest/functions/echo/echo "timeout: 30"
function_of patient loadtest/functions/echo/echo "timeout: 30" "max_concurrency: 64" \
    "max_concurrency_behavior: wait" "resource_pressure_behavior: wait"
function_of nap "$functions/nap.sh" "timeout: 900"

"$(target_dir)/release/yardstick" overload --url "$FLUX_URL" --key "$FLUX_KEY" --pid "$FLUX_PID" "$@"
