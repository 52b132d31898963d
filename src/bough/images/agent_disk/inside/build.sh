#!/bin/sh
# Make the agent disk from packages. Runs below enter.sh of a build; build.py sets the environment. The
# compiled modules of Python are the same for every processor.
set -eu
. ./unpack.sh
echo "@step choosing files"
export PYTHONHASHSEED=0
run_native 'libc.so.6 libz.so.1 libexpat.so.1' "$native/usr/bin/python$BOUGH_PYTHON" -B -s -S \
    /mnt/assemble.py "/mnt/root/$BOUGH_ARCH" "$native" /mnt/agent /mnt/disk
cp init start run disk/ && mv disk/run disk/bin/run
chmod 0755 disk/init disk/start disk/bin/run
{ printf '%s\n' "$BOUGH_VERSION"; cat out/packages; } > disk/version
find disk -exec touch -h -d @0 {} +
echo "@step writing the disk"
# gzip: the format that every kernel with squashfs reads. One processor: the blocks always have the same order.
SOURCE_DATE_EPOCH=0 mksquashfs disk out/agent.squashfs -noappend -no-progress -quiet -all-root -no-xattrs \
    -comp gzip -Xcompression-level 9 -b 131072 -processors 1
