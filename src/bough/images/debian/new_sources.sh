#!/bin/sh
# new_sources.sh FILE: leave in FILE what the base (tmp/known) does not have; remove it where nothing is left.
set -eu
awk -f /mnt/new_sources.awk /mnt/tmp/known "$1" > /mnt/tmp/new.sources
if [ -s /mnt/tmp/new.sources ]; then cat /mnt/tmp/new.sources > "$1"; else rm "$1"; fi
