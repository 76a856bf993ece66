#!/usr/bin/env bash
# test-image.sh FILE: writes the root file system of an image for tests, as a tar, unless FILE is there already: this
# machine's own python3, node, bash and a few tools, with the libraries that they load. Nothing is fetched.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

out="$1"
mkdir -p "$(dirname "$out")"
# Several tests may want it at once.
exec 9>"$out.lock"
flock 9
[ "$out" -nt "${BASH_SOURCE[0]}" ] && [ "$out" -nt /usr/bin/python3 ] && exit 0

root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
for link in bin sbin lib lib64; do
    mkdir -p "$root/usr/$link"
    ln -s "usr/$link" "$root/$link"
done
mkdir -p "$root"/{etc,tmp,proc,sys,dev,usr/lib}
chmod 1777 "$root/tmp"

# copy PATH: under the same path, as the file that it is in the end.
copy() { install -D -m "$(stat -Lc %a "$1")" "$1" "$root/usr/${1#/usr/}"; }

programs=()
for name in python3 node bash sh cat sleep env id ls head tail wc tr sort cut grep mount setsid; do
    programs+=("$(command -v "/usr/bin/$name")")
done
for program in "${programs[@]}"; do copy "$program"; done
mapfile -t modules < <(find /usr/lib/python3.*/lib-dynload -name '*.so')
libraries='$2 == "=>" && $3 ~ /^\// { print $3 } $2 ~ /^\(0x/ && $1 ~ /^\// { print $1 }'
for library in $(ldd "${programs[@]}" "${modules[@]}" 2>/dev/null | awk "$libraries" | sort -u); do
    # /lib and /usr/lib are one place.
    case "$library" in
        /usr/*) copy "$library" ;;
        *) install -D -m 0755 "$library" "$root/usr$library" ;;
    esac
done
for library in /usr/lib/python3.*/; do
    tar -C / --exclude=__pycache__ --exclude='*/test' --exclude='*/idlelib' --exclude='*/ensurepip' \
        --exclude='*/lib2to3' --exclude='*/tkinter' --exclude='*/config-*' -cf - "${library#/}" | tar -C "$root" -xf -
done
# Debian's node finds a part of its own library here.
if [ -d /usr/share/nodejs ]; then
    mkdir -p "$root/usr/share/nodejs"
    for part in acorn acorn-walk cjs-module-lexer undici; do
        [ ! -e "/usr/share/nodejs/$part" ] || cp -rL "/usr/share/nodejs/$part" "$root/usr/share/nodejs/"
    done
fi
printf 'root:x:0:0::/:/bin/sh\n' >"$root/etc/passwd"
tar -C "$root" --owner=0 --group=0 --numeric-owner -cf "$out.new" .
mv "$out.new" "$out"
say "made $out ($(du -h "$out" | cut -f1))"
