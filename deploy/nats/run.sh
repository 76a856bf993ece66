#!/bin/sh
# A nats-server for Flux: certificates alone, accounts as identities.sh exported them and gateways write them anew, one of a cluster
# with those that are named where CLUSTER is set: one by itself would wait for the others. usage: run.sh SELF PEER…
set -eu
self="$1"
shift
certs="${CERTS:-/etc/flux/certs}" data="${DATA:-/data}" run="${RUN:-/tmp}"
exported="$certs/nats/exported.conf" accounts="$certs/nats/accounts.conf"

configure() {
    # Up to the accounts it is TLS, which stays; of the accounts the later ones hold.
    sed '/^accounts/,$d' "$exported" > "$run/tls.conf"
    if [ -s "$accounts" ]; then cat "$accounts"; else sed -n '/^accounts/,$p' "$exported"; fi > "$run/accounts.conf"
}

# Of what a server reads anew when it is told to: accounts, and its certificate, which is renewed long before it ends.
checksum() { cat "$run/accounts.conf" "$run/tls.conf" "$certs/queue/queue.pem" 2>/dev/null | cksum; }

cluster=""
if [ -n "${CLUSTER:-}" ]; then
    routes=""
    for peer in "$@"; do routes="$routes nats://$peer:6222"; done
    cluster="cluster { name: flux, listen: \"0.0.0.0:6222\", routes: [$routes ], no_advertise: true }"
fi
cat > "$run/nats.conf" <<CONF
server_name: "$self"
listen: "0.0.0.0:${PORT:-4222}"
http: "127.0.0.1:${MONITOR:-8222}"
max_payload: 8388608
jetstream { store_dir: "$data", max_memory_store: 4GB, max_file_store: 256GB }
$cluster
include "tls.conf"
include "accounts.conf"
CONF
configure
nats-server --config "$run/nats.conf" &
server=$!
trap 'kill -TERM $server' TERM INT
seen="$(checksum)"
while kill -0 $server 2>/dev/null; do
    sleep 1 & wait $! || true
    configure
    now="$(checksum)"
    if [ "$now" != "$seen" ]; then
        seen="$now"
        # What a new account imports works from the second reading on (nats-server 2.15), and by then a new certificate's key
        # is there too.
        kill -HUP $server && sleep 1 && kill -HUP $server || true
    fi
done
wait $server
