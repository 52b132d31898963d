#!/bin/sh
# Before any package is there: what packages look at while they are configured.
set -eu
root=$1
mkdir -p "$root/etc"
cp -R /mnt/early/. "/mnt/initramfs/$BOUGH_INITRAMFS/." "$root/"
for module in $BOUGH_MODULES; do
    case $BOUGH_INITRAMFS in
        tiny-initramfs) sed -i "/^INCLUDE_MODULES=/s/\$/,$module/" "$root/etc/tiny-initramfs/tiny-initramfs.conf" ;;
        initramfs-tools) echo "$module" >> "$root/etc/initramfs-tools/modules" ;;
    esac
done
# What mmdebstrap chose stays in the guest (customize.sh), which has its own keys and needs none of the host's.
sed 's/^deb \[signed-by=[^]]*\] /deb /' "$root/etc/apt/sources.list" > /mnt/tmp/sources.list
awk -v mirror="$BOUGH_MIRROR" -v security="$BOUGH_SECURITY_MIRROR" -f /mnt/mirrors.awk \
    "$root/etc/apt/sources.list" > /mnt/tmp/building.list
cp /mnt/tmp/building.list "$root/etc/apt/sources.list"
mkdir -p "$root/etc/apt/sources.list.d"
awk '$1 ~ /^deb(-src)?$/ { uri = $2 ~ /^\[/ ? 3 : 2; for (n = uri + 2; n <= NF; n++) print $1, $uri, $(uri + 1), $n }' \
    /mnt/tmp/sources.list > /mnt/tmp/known
for file in /mnt/apt/building/*.sources; do
    [ ! -e "$file" ] || sh /mnt/new_sources.sh "$file"
done
cp -R /mnt/apt/building/. "$root/etc/apt/sources.list.d/"
if [ -e /mnt/apt/pins ]; then
    # Which of them are gone: apt would tell of the first one alone, in other words.
    # With lists of its own: in what order files were made in the root shows in the disk.
    mkdir -p /mnt/tmp/apt/lists/partial /mnt/tmp/apt/cache
    export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
    own="-o Dir::State::lists=/mnt/tmp/apt/lists -o Dir::Cache=/mnt/tmp/apt/cache"
    apt-get -q $own update
    apt-cache $own madison $(cut -d= -f1 /mnt/apt/locked) 2>/dev/null |
        sed -E 's/^ *([^ |]+) *\| *([^ |]+) *\|.*/\1=\2/' | sort -u > /mnt/tmp/available
    if sort -u /mnt/apt/locked | comm -23 - /mnt/tmp/available | sed 's/^/@unavailable /' | grep .; then exit 1; fi
    # Where apt would choose these very versions anyway it is left alone.
    apt-cache $own policy $(cut -d= -f1 /mnt/apt/locked) 2>/dev/null |
        awk '/^[^ ].*:$/ { name = substr($1, 1, length($1) - 1) } / Candidate: / { print name "=" $2 }' |
        sort -u > /mnt/tmp/chosen
    if sort -u /mnt/apt/locked | comm -23 - /mnt/tmp/chosen | grep -q .; then
        mkdir -p "$root/etc/apt/preferences.d"
        cp /mnt/apt/pins "$root/etc/apt/preferences.d/00-bough-lock"
    fi
fi
