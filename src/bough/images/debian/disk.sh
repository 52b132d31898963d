#!/bin/sh
set -eu
root=$1
epoch=$(cat out/epoch)
export E2FSPROGS_FAKE_TIME="$epoch" SOURCE_DATE_EPOCH="$epoch"
find "$root" -exec touch -h -a -d "@$epoch" {} +
mke2fs -q -F -t ext4 -L root -U "$BOUGH_ROOT_UUID" -m 1 -J size=64 -d "$root" \
    -E "offset=$BOUGH_ROOT_OFFSET,hash_seed=$BOUGH_ROOT_UUID,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard,assume_storage_prezeroed=1" \
    disk.raw "$((BOUGH_ROOT_SIZE / 1024))k"
