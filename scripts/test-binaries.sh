#!/usr/bin/env bash
# Builds the binaries that whole-cluster tests start. nextest runs it before the first of them; `make test` has
# built everything already, with the same features as the tests, and says so.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

[ "${FLUX_TEST_BINARIES:-}" = built ] && exit 0
cd "$ROOT"
exec cargo build --workspace --all-targets --quiet
