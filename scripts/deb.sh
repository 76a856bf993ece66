#!/usr/bin/env bash
# Debian packages of the programs that were built. scripts/deb.sh OUT [PROFILE [VERSION]]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

out="$1" profile="${2:-release}" version="${3:-}"
mkdir -p "$out"
# Symbols stay in what is shipped: a backtrace without them says nothing. A debug build's are gigabytes.
how=(--no-strip)
[ "$profile" != dev ] || how=(--strip --fast)
for package in flux-gateway flux-agent flux-autoscaler flux-cli; do
    (cd "$ROOT" && cargo deb --quiet --no-build "${how[@]}" --profile "$profile" --package "$package" --output "$out/" \
        ${version:+--deb-version "$version"})
done
ls -1 "$out"/*.deb
