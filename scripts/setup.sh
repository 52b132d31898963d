#!/bin/sh
# Install the packages that bough needs on this host, and bough into .venv of this checkout.
#
#   scripts/setup.sh           packages for `bough`
#   scripts/setup.sh dev       ... and for the tests, the linters and the benchmarks
#   scripts/setup.sh arm64     ... and for machines of that processor: arm64, riscv64, i386
#
# The script names the packages, and asks before sudo, unless it runs as root or CI=true. A second run
# changes nothing and takes 0.1 s. PYTHON=/path/to/python3 chooses another Python.
set -eu

extras=
arches=$(uname -m)
for word in "$@"; do
    case $word in
        dev) extras=dev ;;
        arm64 | aarch64 | riscv64 | i386) arches="$arches $word" ;;
        *) printf 'error: expected dev, arm64, riscv64 or i386, got %s\n' "$word" >&2; exit 2 ;;
    esac
done
here=$(cd "$(dirname "$0")/.." && pwd)
venv=$here/.venv
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $1"
    [ -z "${2:-}" ] || say "
hint: $2"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# --- which Python ------------------------------------------------------------------------------------
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if have "$candidate" && is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

# --- missing packages: the Debian name of each, one a line --------------------------------------------
needs() { have "$1" || echo "$2"; }  # a program, and its package

# To build an image of another processor, its programs run here.
runs() { [ "$(uname -m)" = "$1" ] || have "qemu-$1-static" || have "qemu-$1" || echo qemu-user-static; }

missing_packages() {
    for arch in $arches; do
        case $arch in
            x86_64) needs qemu-system-x86_64 qemu-system-x86
                    ls /usr/share/OVMF/OVMF_CODE*.fd >/dev/null 2>&1 || echo ovmf ;;
            i386) needs qemu-system-i386 qemu-system-x86 ;;
            aarch64 | arm64) needs qemu-system-aarch64 qemu-system-arm
                     ls /usr/share/AAVMF/AAVMF_CODE*.fd >/dev/null 2>&1 || echo qemu-efi-aarch64
                     runs aarch64 ;;
            riscv64) needs qemu-system-riscv64 qemu-system-misc
                     ls /usr/lib/u-boot/qemu-riscv64_smode/uboot.elf >/dev/null 2>&1 || echo u-boot-qemu
                     runs riscv64 ;;
        esac
    done
    needs qemu-img qemu-utils
    needs mmdebstrap mmdebstrap
    needs mke2fs e2fsprogs
    needs sfdisk fdisk
    needs mcopy mtools
    needs mkfs.vfat dosfstools
    needs mksquashfs squashfs-tools
    needs skopeo skopeo
    needs bwrap bubblewrap
    needs passt passt
    needs swtpm swtpm
    needs gpgv gpgv
    needs newuidmap uidmap
    [ -x /usr/lib/openssh/sftp-server ] || echo openssh-sftp-server
    # Ubuntu has only its own keys; mmdebstrap checks Debian's packages with Debian's keys.
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || [ -e /usr/share/keyrings/debian-archive-keyring.pgp ] ||
        echo debian-archive-keyring
    python=$(find_python)
    if [ -z "$python" ]; then
        echo python3.11-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -c 'import sys; print("python3-venv" if sys.executable == "/usr/bin/python3"
              else "python%d.%d-venv" % sys.version_info[:2])'
    fi
    if [ "$extras" = dev ]; then
        needs ssh openssh-client
        needs rsync rsync
        needs gpg gpg
        needs gpg-agent gpg-agent
        needs xz xz-utils
        needs zstd zstd
        needs bzip2 bzip2
        needs docker-registry docker-registry
        needs umoci umoci
        needs buildah buildah
    fi
}

# --- install -----------------------------------------------------------------------------------------
as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

may_use_sudo() {
    [ "$(id -u)" = 0 ] && return
    have sudo || die "installing these needs root, and there is no sudo" "as root: apt-get install $*"
    [ "${CI:-}" = true ] && return
    [ -t 0 ] || die "installing these needs root, and stdin is no terminal to ask for permission" "sudo apt-get install $*"
    printf 'Install them with sudo apt-get? [Y/n] ' >&2
    read -r answer
    case $answer in '' | [yY]*) ;; *) die "not installed" "sudo apt-get install $*" ;; esac
}

is_packaged() { [ -n "$(apt-cache policy "$1" 2>/dev/null | grep Candidate: | grep -v '(none)')" ]; }

install_packages() {
    say "this host lacks: $*"
    have apt-get || die "this script supports apt only" \
        "install them by the names of your distribution and run the script again; see bough doctor"
    may_use_sudo "$@"
    log=$(mktemp)
    # The package lists of a new host are empty or old.
    as_root apt-get update -q >"$log" 2>&1 || say "warning: apt-get update failed: $(tail -n 1 "$log")"
    packaged=
    for package in "$@"; do
        # Ubuntu 22.04 has no passt; bough uses QEMU's own user network there.
        if is_packaged "$package"; then packaged="$packaged $package"; else say "warning: no package $package here"; fi
    done
    # shellcheck disable=SC2086  # a list of words
    as_root apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends $packaged >"$log" 2>&1 </dev/null ||
        { tail -n 20 "$log" >&2; die "apt-get install failed" "see $log for the whole output"; }
    rm -f "$log"
    say "installed:$packaged"
}

missing=$(missing_packages | sort -u)
# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || install_packages $missing

# --- the virtual environment -------------------------------------------------------------------------
python=$(find_python)
[ -n "$python" ] || die "bough needs Python 3.11 or newer; found $(python3 --version 2>&1)" \
    "install Python and run: PYTHON=/path/to/python3 make ..."

# A virtual environment depends on its path and its Python; its packages depend on pyproject.toml, too.
made="$here $("$python" -c 'import sys; print(sys.version, sys.base_prefix)')"
wanted="$made $(cksum <"$here/pyproject.toml")"
stamp=$venv/.installed-${extras:-run}
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "installing bough${extras:+ and the packages of its tests} into .venv"
    if [ "$(cat "$venv/.made" 2>/dev/null)" != "$made" ]; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
        printf '%s' "$made" >"$venv/.made"
    fi
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable "$here${extras:+[$extras]}"
    printf '%s' "$wanted" >"$stamp"
    # The packages for development include those to run bough.
    [ -z "$extras" ] || printf '%s' "$wanted" >"$venv/.installed-run"
fi
