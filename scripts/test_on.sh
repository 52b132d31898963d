#!/bin/sh
# Run all tests in another release of Debian, with its Python and its QEMU.
#
#   scripts/test_on.sh trixie            run .ci/run on the committed tree
#   scripts/test_on.sh trixie COMMAND    run COMMAND in the clone of the last run
#
# Run as root: the tests create namespaces, groups and users. The release is installed into
# /var/tmp/bough-test-<release>, which stays for the next run; remove the directory when you are done.
set -eu
[ $# -ge 1 ] || { echo "error: no release given

hint: $0 trixie" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "error: the tests need root

hint: sudo $0 $*" >&2; exit 1; }
release=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
tree=/var/tmp/bough-test-$release

if [ ! -d "$tree" ]; then
    # Build beside the target, then rename: a half-made tree of an earlier run is never used.
    made=$tree.new
    rm -rf "$made"
    mmdebstrap --variant=important --include=ca-certificates,git,make,python3-venv "$release" "$made"
    # Use this host's settings for mirrors.
    cp -a /etc/apt/apt.conf.d/. "$made/etc/apt/apt.conf.d/"
    cp -L /etc/resolv.conf /etc/hosts "$made/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$made/etc/ssl/certs/ca-certificates.crt"
    [ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$made/etc/pip.conf"
    mv "$made" "$tree"
fi
if [ $# -eq 0 ] || [ ! -d "$tree/srv/bough" ]; then
    rm -rf "$tree/srv/bough"
    git clone -q "$here" "$tree/srv/bough"
fi
[ $# -gt 0 ] || set -- .ci/run
exec bwrap --bind "$tree" / --dev-bind /dev /dev --proc /proc --bind /sys /sys --tmpfs /run --tmpfs /dev/shm \
    --ro-bind-try /opt /opt --cap-add ALL --unshare-pid --die-with-parent \
    --setenv HOME /root --setenv PATH /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --chdir /srv/bough -- "$@"
