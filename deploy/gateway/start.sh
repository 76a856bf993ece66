#!/usr/bin/env bash
# The gateway of an image. The key comes as a file, which no other process sees, and becomes a setting here.
set -euo pipefail
key=/run/secrets/api-key
if [ -z "${FLUX_GATEWAY__API_KEY:-}" ] && [ -r "$key" ]; then
    FLUX_GATEWAY__API_KEY="$(cat "$key")"
    export FLUX_GATEWAY__API_KEY
fi
exec flux-gateway --config "${FLUX_CONFIG:-/etc/flux/flux.yaml}" "$@"
