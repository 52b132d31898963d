#!/bin/sh
# A user's mirror replaces the archive's own addresses; see mirrors.awk.
set -eu
awk -v mirror="$BOUGH_MIRROR" -v security="$BOUGH_SECURITY_MIRROR" -f /mnt/mirrors.awk \
    "$1/etc/apt/sources.list" > /mnt/tmp/sources.list
cp /mnt/tmp/sources.list "$1/etc/apt/sources.list"
