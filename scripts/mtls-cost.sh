#!/usr/bin/env bash
# What certificates on the queue cost a sync call: a Flux with them and one without, side by side, in turns.
# scripts/mtls-cost.sh [ROUNDS] [SECONDS]; needs `make build echo-function`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

rounds="${1:-3}" seconds="${2:-4}"
flux="$(target_dir)/release/flux"
dir="$(mktemp -d)"
chmod 755 "$dir"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

printf 'disable_mtls: true\n' > "$dir/plain.yaml"
start() { # NAME HTTP-PORT QUEUE-PORT [OPTION...]
    "$flux" up --data-dir "$dir/$1" --listen "127.0.0.1:$2" --queue-listen "127.0.0.1:$3" "${@:4}" > "$dir/$1.log" 2>&1 &
    pids+=($!)
    curl --silent --fail --output /dev/null --retry 60 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$2/ready"
    FLUX_URL="http://127.0.0.1:$2" FLUX_KEY="$(cat "$dir/$1/api-key")" "$flux" deploy "$ROOT/loadtest/functions/echo" >&2
}
start mtls 17327 14401
start plain 17328 14402 --config "$dir/plain.yaml"

for _ in $(seq "$rounds"); do
    for which in mtls:17327 plain:17328; do
        for callers in 1 64; do
            python3 - "${which%%:*}" "${which##*:}" "$callers" "$seconds" "$dir/${which%%:*}/api-key" <<'PY'
import http.client, sys, threading, time

name, port, callers, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
headers = {"X-API-Key": open(sys.argv[5]).read().strip(), "content-type": "application/json"}
took, lock, end = [], threading.Lock(), time.time() + seconds

def call():
    connection, own = http.client.HTTPConnection("127.0.0.1", port), []
    while time.time() < end:
        began = time.perf_counter()
        connection.request("POST", "/execute/echo", b'{"payload":{"n":1}}', headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            own.append(time.perf_counter() - began)
        elif answer.status != 429:
            raise SystemExit(f"{answer.status}: {body}")
    with lock:
        took.extend(own)

threads = [threading.Thread(target=call) for _ in range(callers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
took.sort()
print(f"{name} c={callers}: {len(took) / seconds:.0f}/s, p50 {took[len(took) // 2] * 1e6:.0f} us, p99 {took[len(took) * 99 // 100] * 1e6:.0f} us")
PY
        done
    done
done
