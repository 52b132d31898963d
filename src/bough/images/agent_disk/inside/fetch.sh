#!/bin/sh
# Download the packages, without their dependencies. apt checks the signatures of the lists.
set -eu
cd "$BOUGH_INTO"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
# shellcheck disable=SC2086  # a list of words
apt-get -q -o APT::Sandbox::User=root download $BOUGH_NAMES
