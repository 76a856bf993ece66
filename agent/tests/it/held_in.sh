#!/bin/sh
# What a function without a network finds out about where it is.
echo user $(id -u)
while read -r name value; do
    case $name in CapEff:) rights=$value ;; NoNewPrivs:) no_new=$value ;; esac
done </proc/self/status
case $rights in *[!0]*) none=0 ;; *) none=1 ;; esac
echo privileges $none $no_new
echo processes $(ls -d /proc/[0-9]* | wc -l)
for place in / /usr /etc . /.flux /.flux/run /proc/1; do (echo x >$place/x) 2>/dev/null && echo wrote $place; done
echo x >/tmp/x && echo tmp
head -c 200000000 /dev/zero >/tmp/much 2>/dev/null || echo full
# It is memory, and may be somebody's who comes after it.
: >/tmp/much
tr -s ' ' </proc/net/dev | cut -d: -f1 | tr '\n' ' '
