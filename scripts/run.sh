#!/usr/bin/env bash
# Starts Flux on this machine, deploys examples/hello, calls it, says how to call it again, and stays until Ctrl-C.
# Environment: FLUX_LISTEN (127.0.0.1:7227), FLUX_DATA_DIR (.flux/run).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

data="$(data_dir run)"
mkdir -p "$data"
chmod a+x "$(dirname "$data")"
key_file="$(dirname "$data")/run.key"
[ -s "$key_file" ] || (umask 077 && new_key >"$key_file")
FLUX_KEY="$(cat "$key_file")"
log="$(dirname "$data")/run.log"

start_flux "$data" "${FLUX_LISTEN:-127.0.0.1:7227}" "$FLUX_KEY" "$log"
flux deploy "$ROOT/examples/hello" >&2
answer="$(call POST /execute/hello -H 'Content-Type: application/json' -d '{"payload":{"name":"Ada"}}')"

cat <<TEXT

Flux is running, and examples/hello is deployed. It answered:

  $answer

  URL   $FLUX_URL
  key   $FLUX_KEY
  log   $log

Call it again:

  curl -X POST $FLUX_URL/execute/hello -H 'X-API-Key: $FLUX_KEY' -H 'Content-Type: application/json' -d '{"payload":{"name":"Ada"}}'

Or with the command line:

  export PATH=$(target_dir)/release:\$PATH FLUX_URL=$FLUX_URL FLUX_KEY=$FLUX_KEY FLUX_CERTS_DIR=$(realpath "$data")/certs
  flux deploy examples/slow && flux invoke slow --follow

Ctrl-C stops it.
TEXT

wait "$FLUX_PID" && status=0 || status=$?
FLUX_PID=
die "flux ended by itself with status $status; its log is $log"
