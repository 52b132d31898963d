#!/bin/sh
# Make the agent disk from packages. Runs below enter.sh of a build; build.py sets the environment. A line
# "@step NAME" tells the progress. No program of the disk's processor runs here: the packages are unpacked,
# and the compiled modules of Python are the same for every processor.
set -eu
umask 022
mkdir -p tmp packages && chmod 1777 tmp
echo "@step downloading packages"
# mmdebstrap knows the archive's address and keys for each suite. Without packages it writes apt's
# configuration and lists, and fetch.sh downloads.
for arch in $BOUGH_ARCHES; do
    mkdir -p "packages/$arch"
    case $arch in
        "$BOUGH_ARCH") names=$BOUGH_PACKAGES ;;
        *) names=$BOUGH_COMPILER ;;
    esac
    BOUGH_NAMES=$names BOUGH_INTO=/mnt/packages/$arch TMPDIR=/mnt/tmp mmdebstrap --mode=unshare \
        --variant=custom --format=directory --architectures="$arch" --skip=check/qemu \
        --setup-hook='sh /mnt/mirror.sh "$1"' \
        --customize-hook='sh /mnt/fetch.sh "$1"' \
        "$BOUGH_SUITE" "/mnt/tmp/apt-$arch"
    echo "@step unpacking packages"
    mkdir -p "root/$arch"
    for package in "packages/$arch"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner -C "root/$arch"
    done
done
echo "@step choosing files"
# The Python of the packages for this host's processor, started through its own loader.
native=/mnt/root/$BOUGH_NATIVE
first() {
    find "$native/lib" "$native/lib64" "$native/usr/lib" "$native/usr/lib64" -name "$1" 2>/dev/null |
        sort | head -n 1
}
libraries=$(dirname "$(first libc.so.6)"):$(dirname "$(first libz.so.1)"):$(dirname "$(first libexpat.so.1)")
PYTHONHASHSEED=0 "$(first 'ld-linux*.so.*')" --inhibit-cache --library-path "$libraries" \
    "$native/usr/bin/python$BOUGH_PYTHON" -B -s -S /mnt/assemble.py "/mnt/root/$BOUGH_ARCH" "$native" /mnt/agent /mnt/disk
cp start run disk/ && mv disk/run disk/bin/run
chmod 0755 disk/start disk/bin/run
for package in "packages/$BOUGH_ARCH"/*.deb; do
    dpkg-deb --showformat '${Package} ${Version}\n' --show "$package"
done | sort > out/packages
{ printf '%s\n' "$BOUGH_VERSION"; cat out/packages; } > disk/version
find disk -exec touch -h -d @0 {} +
echo "@step writing the disk"
# gzip: the format that every kernel with squashfs reads. One processor: the blocks always have the same order.
SOURCE_DATE_EPOCH=0 mksquashfs disk out/agent.squashfs -noappend -no-progress -quiet -all-root -no-xattrs \
    -comp gzip -Xcompression-level 9 -b 131072 -processors 1
