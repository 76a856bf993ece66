#!/usr/bin/env bash
# Installs, upgrades, removes and purges the packages in a Debian of their own, and looks at what is there after each.
# scripts/deb-check.sh [PROFILE]; needs root, for debootstrap and chroot.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

profile="${1:-release}"
[ "$(id -u)" -eq 0 ] || die "deb-check makes a chroot: run it as root"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cached="$ROOT/.tools/debian.tar" node="$work/node"
if [ ! -e "$cached" ]; then
    say "making a small Debian (once per checkout)"
    debootstrap --variant=minbase "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$node" >"$work/debootstrap.log" 2>&1 ||
        { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
    tar -C "$node" -cf "$cached.part" . && mv "$cached.part" "$cached"
    rm -rf "$node"
fi
mkdir "$node" && tar -C "$node" -xf "$cached"

in_node() { chroot "$node" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
is() { [ -e "$node/$1" ] || [ -L "$node/$1" ] || die "$2: $1 is missing"; }
is_not() { { [ ! -e "$node/$1" ] && [ ! -L "$node/$1" ]; } || die "$2: $1 is there"; }

"$ROOT/scripts/deb.sh" "$work/old" "$profile" 0.0.1 >/dev/null
"$ROOT/scripts/deb.sh" "$work/new" "$profile" 0.0.2 >/dev/null
install_from() {
    rm -rf "$node/debs" && cp -r "$1" "$node/debs"
    in_node sh -c 'dpkg --install /debs/*.deb' >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "dpkg failed"; }
}

say "installing"
install_from "$work/old"
for program in flux flux-gateway flux-agent flux-autoscaler; do
    in_node "$program" --version >/dev/null || die "$program does not run"
done
for user in flux flux-runner; do in_node id "$user" >/dev/null || die "there is no user $user"; done
grep -q '^flux-runner:1879048192:65536$' "$node/etc/subuid" || die "no numbers are set aside for functions"
for service in flux-gateway flux-agent flux-autoscaler; do
    is "etc/flux/$service.yaml.example" install
    is "etc/systemd/system/multi-user.target.wants/$service.service" install
    # As this machine's systemd reads it, with the programs where the unit says.
    unit="$(find "$node/lib/systemd/system" "$node/usr/lib/systemd/system" -name "$service.service" 2>/dev/null | head -n 1)"
    [ -n "$unit" ] || die "$service has no unit"
    if have systemd-analyze; then
        told="$(systemd-analyze verify --man=no --root="$node" "$(basename "$unit")" 2>&1 | grep "$service.service" | grep -v 'Unit .* not found' || true)"
        [ -z "$told" ] || die "$told"
    fi
done
grep -q '^Delegate=yes$' "$node"/{usr/,}lib/systemd/system/flux-agent.service 2>/dev/null || die "the agent's cgroup is not its own"
# The examples are configurations: each is read to its end; what lacks then is a key, or a queue.
for service in flux-gateway flux-agent flux-autoscaler; do
    cp "$node/etc/flux/$service.yaml.example" "$node/etc/flux/flux.yaml"
    told="$(in_node timeout 20 "$service" --config /etc/flux/flux.yaml 2>&1 || true)"
    ! grep -Eq ': (configuration: |the configuration file )|`aws`' <<<"$told" || die "$service.yaml.example: $told"
    rm "$node/etc/flux/flux.yaml"
done

say "upgrading"
printf 'queue: { url: "nats://10.0.0.1:4222" }\n' >"$node/etc/flux/flux.yaml"
echo '# mine' >>"$node/etc/flux/flux-agent.yaml.example"
mkdir -p "$node/var/lib/flux/agent" "$node/var/lib/flux/gateway" "$node/var/lib/flux/autoscaler/known_hosts" "$node/etc/flux/certs"
echo x >"$node/var/lib/flux/gateway/flux.db"; echo x >"$node/etc/flux/certs/ca.pem"
in_node systemctl disable flux-agent >/dev/null 2>&1 || rm "$node/etc/systemd/system/multi-user.target.wants/flux-agent.service"
install_from "$work/new"
in_node dpkg-query --showformat '${Version}\n' --show flux-agent | grep -q '^0\.0\.2' || die "the version is the old one"
grep -q '10.0.0.1' "$node/etc/flux/flux.yaml" || die "the configuration was written over"
grep -q '^# mine$' "$node/etc/flux/flux-agent.yaml.example" || die "what somebody changed was written over"
is var/lib/flux/gateway/flux.db upgrade
is var/lib/flux/autoscaler/known_hosts upgrade
is_not etc/systemd/system/multi-user.target.wants/flux-agent.service "upgrade of a service that was disabled"

say "removing"
in_node dpkg --remove flux-gateway flux-agent flux-autoscaler flux-cli >/dev/null
for program in flux flux-gateway flux-agent flux-autoscaler; do is_not "usr/bin/$program" remove; done
is etc/flux/flux.yaml remove
is var/lib/flux/gateway/flux.db remove

say "purging"
in_node dpkg --purge flux-gateway flux-agent flux-autoscaler flux-cli >/dev/null 2>&1
is_not var/lib/flux purge
is_not etc/flux/flux-agent.yaml.example purge
is_not etc/flux/flux-gateway.yaml.example purge
is_not etc/flux/flux-autoscaler.yaml.example purge
is etc/flux/certs/ca.pem "purge: it was made by somebody"
is etc/flux/flux.yaml "purge: it was written by somebody"
in_node id flux >/dev/null || die "purge: the user flux is gone, whose files may be left"
say "installed, upgraded, removed and purged"
