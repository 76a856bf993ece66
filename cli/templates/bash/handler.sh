#!/usr/bin/env bash
# {{name}}: counts what is in the payload.
#
# The payload arrives on standard input. What is printed to standard output is the result if it is JSON; what is
# printed to standard error is shown beside it. An exit status other than 0 is a failure.
set -euo pipefail

payload="$(cat)"
read -ra words <<<"$payload" || true
echo "attempt ${FLUX_ATTEMPT:-1} of ${FLUX_EXECUTION_ID:-nothing}" >&2
printf '{"bytes": %d, "words": %d}\n' "${#payload}" "${#words[@]}"
