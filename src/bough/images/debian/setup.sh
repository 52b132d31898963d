#!/bin/sh
# Before any package is there: what packages look at while they are configured.
set -eu
root=$1
mkdir -p "$root/etc"
cp -R /mnt/early/. "$root/"
