#!/bin/sh
# All tests in another release of Debian: its Python, its QEMU.
#
#   scripts/test_on.sh trixie            what is committed here, all that .ci/run does
#   scripts/test_on.sh trixie COMMAND    something else, in the clone that the last time left
#
# As root: the tests make namespaces, groups and users of their own. The release is installed into
# /var/tmp/bough-test-<release>, which stays for the next time; remove it when you are done.
set -eu
[ $# -ge 1 ] || { echo "error: which release? (trixie)" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "error: only root can; try sudo $0" >&2; exit 1; }
release=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
tree=/var/tmp/bough-test-$release

if [ ! -d "$tree" ]; then
    # Whole or not at all: what an earlier try left half-made is not taken for one.
    made=$tree.new
    rm -rf "$made"
    mmdebstrap --variant=important --include=ca-certificates,git,make,python3-venv "$release" "$made"
    # What this host's clients of mirrors were told holds there as well.
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
