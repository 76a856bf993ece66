#!/usr/bin/env bash
# k6 load tests against a Flux started for them on a fresh directory. Their thresholds are ratios to what the same
# generator reaches against a bare echo server in the same run, so that they mean the same on every machine.
# Environment: FLUX_URL and FLUX_KEY to load a Flux that runs already (with the function `echo` deployed),
# SCRIPTS ("sync async mixed spike"; soak is there too), DURATION (15s, and 5m for soak).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
cargo build --release --quiet -p flux-yardstick
work="$(mktemp -d)"

# The echo server ends when its standard input does, and that is when this script does.
mkfifo "$work/hold"
"$(target_dir)/release/yardstick" echo-http --until-eof <"$work/hold" >"$work/echo" &
exec 9>"$work/hold"
for ((waited = 0; waited < 100; waited++)); do
    [ -s "$work/echo" ] && break
    sleep 0.05
done
ECHO_URL="http://$(sed -n 's/.*"listening":"\([^"]*\)".*/\1/p' "$work/echo")/echo"
rm -rf "$work"

if [ -z "${FLUX_URL:-}" ]; then
    FLUX_KEY="$(new_key)"
    data="$(data_dir "load.$$")"
    mkdir -p "$data"
    chmod a+x "$(dirname "$data")"
    start_flux "$data" "${FLUX_LISTEN:-127.0.0.1:7228}" "$FLUX_KEY" "$data.log"
    trap 'stop_flux; rm -rf "$data" "$data.log"' EXIT
    flux deploy loadtest/functions/echo >&2
fi
# The spike's: the same program, refused at once where there is no room for it.
exits="$(mktemp -d)"
cp loadtest/functions/echo/echo "$exits/"
printf '%s\n' "name: echo_exit" "handler: echo" "resources: { cpu: 500, memory: 16 }" "timeout: 30" >"$exits/flux.yaml"
flux deploy "$exits" >&2
rm -r "$exits"
export FLUX_URL FLUX_KEY ECHO_URL
asked="${DURATION:-}"

failed=()
for script in ${SCRIPTS:-sync async mixed spike}; do
    usual=15s
    [ "$script" = soak ] && usual=5m
    export DURATION="${asked:-$usual}"
    say ""
    say "== $script"
    k6 run --quiet --no-usage-report "loadtest/k6/$script.js" || failed+=("$script")
done
[ ${#failed[@]} -eq 0 ] || die "thresholds not met: ${failed[*]}"
