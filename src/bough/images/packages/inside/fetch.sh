#!/bin/sh
# Download the packages, without their dependencies. apt checks the signatures of the lists. Of a metapackage,
# such as a kernel's, the first dependency is downloaded.
set -eu
cd "$BOUGH_INTO"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
names=$BOUGH_NAMES
for name in $BOUGH_METAPACKAGES; do
    found=$(apt-cache depends --important "$name" | awk '$1 == "Depends:" { print $2; exit }')
    [ -n "$found" ] || { echo "the package $name depends on nothing" >&2; exit 1; }
    names="$names $found"
done
# shellcheck disable=SC2086  # a list of words
apt-get -q -o APT::Sandbox::User=root download $names
