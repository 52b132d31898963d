#!/bin/sh
# Runs in a user namespace of its own (as root: mount and pid namespaces only), its working directory
# being the build's. An ordinary user's home may be closed to the subordinate ids that are root in here;
# a bind mount of "." needs no way through it.
set -eu
mount --no-canonicalize --bind . /mnt
cd /mnt
exec "$@"
