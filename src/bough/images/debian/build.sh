#!/bin/sh
# Make the root file system from packages, then the disk. Runs below enter.sh; the environment is set by
# bootstrap.py. A line "@step NAME" tells how far it is.
set -eu
# Whether programs of this architecture run here was found out by running one.
umask 022
echo "@step installing packages"
mkdir -p tmp && chmod 1777 tmp
# Versions that were asked for may be of a day whose index has expired since. In either case there is such a
# file: in what order files were made shows in the disk.
valid=true
[ ! -e apt/pins ] || valid=false
# No address is named: mmdebstrap has the archive's own for each suite. What is asked for instead: setup.sh.
TMPDIR=/mnt/tmp mmdebstrap --mode=unshare --variant=apt --format=directory \
    --architectures="$BOUGH_ARCH" --skip=check/qemu \
    --dpkgopt=force-unsafe-io --include="$BOUGH_PACKAGES" \
    --setup-hook='sh /mnt/setup.sh "$1"' \
    --customize-hook='sh /mnt/customize.sh "$1"' \
    --aptopt="Acquire::Check-Valid-Until \"$valid\"" "$BOUGH_SUITE" /mnt/root
echo "@step cleaning up"
sh ./clean.sh /mnt/root
echo "@step writing the disk"
sh ./disk.sh /mnt/root
