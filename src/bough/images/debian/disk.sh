#!/bin/sh
# The root file system, straight into its place on the disk; the same bytes for the same files.
set -eu
root=$1
epoch=$(cat out/epoch)
export E2FSPROGS_FAKE_TIME="$epoch" SOURCE_DATE_EPOCH="$epoch"
find "$root" -exec touch -h -a -d "@$epoch" {} +
mke2fs -q -F -t ext4 -L root -U "$BOUGH_ROOT_UUID" -m 1 -J size=64 -d "$root" \
    -E "offset=$BOUGH_ROOT_OFFSET,hash_seed=$BOUGH_ROOT_UUID,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard,assume_storage_prezeroed=1" \
    disk.raw "$((BOUGH_ROOT_SIZE / 1024))k"
# mke2fs copies the time of the last change of an inode, which nobody can set on the host's file system.
inodes=$(dumpe2fs -h "disk.raw?offset=$BOUGH_ROOT_OFFSET" 2>/dev/null |
    awk '/^Inode count/ { all = $3 } /^Free inodes/ { free = $3 } END { print all - free }')
{
    echo "sif <2> ctime @$epoch"
    for inode in $(seq 11 "$inodes"); do echo "sif <$inode> ctime @$epoch"; done
} > ctimes
debugfs -w -f ctimes "disk.raw?offset=$BOUGH_ROOT_OFFSET" > /dev/null 2>&1
