#!/bin/sh
# root.sh TREE: write the root file system of a disk from a tree of files. Runs below enter.sh; disk.py sets the
# environment. The owners of the files are kept. The same tree, read in the same order, gives the same bytes.
set -eu
root=$1
# The place for the agent disk. A container could not have used it.
if [ -L "$root/.bough" ] || [ ! -d "$root/.bough" ]; then rm -rf "$root/.bough" && mkdir -m 0755 "$root/.bough"; fi
export E2FSPROGS_FAKE_TIME="$BOUGH_EPOCH" SOURCE_DATE_EPOCH="$BOUGH_EPOCH"
find "$root/.bough" "$root" -maxdepth 0 -exec touch -d "@$BOUGH_EPOCH" {} +
find "$root" -exec touch -h -a -d "@$BOUGH_EPOCH" {} +
# Blocks and inodes for the files, and as many again, but not less than of other images.
entries=$(find "$root" -printf '.' | wc -c)
used_kib=$(du -sk "$root" | cut -f1)
kib=$(( (used_kib + entries) * 2 + 262144 ))
if [ "$kib" -lt "$BOUGH_ROOT_KIB" ]; then kib=$BOUGH_ROOT_KIB; else kib=$(( (kib + 1048575) / 1048576 * 1048576 )); fi
inodes=$(( entries * 2 ))
least=$(( kib / 16 ))
if [ "$inodes" -lt "$least" ]; then inodes=$least; fi
mke2fs -q -F -t ext4 -L root -U "$BOUGH_ROOT_UUID" -m 1 -J size=64 -N "$inodes" -d "$root" \
    -E "offset=$BOUGH_ROOT_OFFSET,hash_seed=$BOUGH_ROOT_UUID,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard,assume_storage_prezeroed=1" \
    disk.raw "${kib}k"
# mke2fs copies the time of the last change of an inode, which nobody can set on the host's file system.
image="disk.raw?offset=$BOUGH_ROOT_OFFSET"
last=$(dumpe2fs -h "$image" 2>/dev/null | awk '/^Inode count/ { all = $3 } /^Free inodes/ { free = $3 } END { print all - free }')
{
    # A container has no such directory.
    echo "rmdir lost+found"
    echo "sif <2> mtime @$BOUGH_EPOCH"
    echo "sif <2> ctime @$BOUGH_EPOCH"
    seq 11 "$last" | sed "s/.*/sif <&> ctime @$BOUGH_EPOCH/"
} > ctimes
debugfs -w -f ctimes "$image" > /dev/null 2>&1
echo "$kib" > out/root-kib
