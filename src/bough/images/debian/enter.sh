#!/bin/sh
# Runs in a user namespace of its own (as root: mount and pid namespaces only), its working directory
# being the build's. An ordinary user's home may be closed to the subordinate ids that are root in here;
# a bind mount of "." needs no way through it.
set -eu
# Standard input ends when whoever asked for this build is gone, killed too: then nothing here goes on.
exec 3<&0 </dev/null
{ cat <&3 >/dev/null; kill -KILL -1; } >/dev/null 2>&1 &
exec 3<&-
# Programs of another processor: only in here, for binfmt_misc is the user namespace's.
if [ -n "${BOUGH_BINFMT:-}" ]; then
    mkdir -p binfmt
    mount --no-canonicalize -t binfmt_misc binfmt_misc binfmt
    printf '%s' "$BOUGH_BINFMT" > binfmt/register
fi
mount --no-canonicalize --bind . /mnt
cd /mnt
exec "$@"
