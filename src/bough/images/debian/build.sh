#!/bin/sh
# Make the root file system from packages, then the disk. Runs below enter.sh; the environment is set by
# bootstrap.py. A line "@step NAME" tells how far it is.
set -eu
umask 022
echo "@step installing packages"
mkdir -p tmp && chmod 1777 tmp
TMPDIR=/mnt/tmp mmdebstrap --mode=unshare --variant=apt --format=directory \
    --dpkgopt=force-unsafe-io --include="$BOUGH_PACKAGES" \
    --setup-hook='sh /mnt/setup.sh "$1"' \
    --customize-hook='sh /mnt/customize.sh "$1"' \
    "$BOUGH_SUITE" /mnt/root $BOUGH_MIRROR
echo "@step cleaning up"
sh ./clean.sh /mnt/root
echo "@step writing the disk"
sh ./disk.sh /mnt/root
