#!/usr/bin/env bash
# Holds a running API to its own OpenAPI document with schemathesis: no 5xx that is not documented, no answer that is not, and
# nothing that a key is needed for without one. Needs `make build`; starts a Flux of its own on loopback.
# Environment: EXAMPLES (20) requests for each operation, SEED.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

EXAMPLES="${EXAMPLES:-20}"
into="$ROOT/.tools/schemathesis"
"$ROOT/scripts/setup.sh" api

data="$(data_dir api-check)"
rm -rf "$data"
mkdir -p "$data"
start_flux "$data/flux" "127.0.0.1:${PORT:-7327}" api-check-key "$data/log"
# The whole document but what takes long by design or is no JSON: streams, archives, and the functions' own answers.
cd "$data" # it leaves a cache where it runs
"$into/bin/schemathesis" run "$FLUX_URL/openapi.json" \
    --header "X-API-Key: api-check-key" \
    --exclude-path-regex '^/fn/|/stream$|^/deploy/' \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
    --max-examples "$EXAMPLES" --phases examples,coverage,fuzzing --generation-database none \
    --request-timeout 20 ${SEED:+--seed "$SEED"}
