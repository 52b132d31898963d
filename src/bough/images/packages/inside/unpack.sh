# Download and unpack packages. The build.sh of a build sources this file first; unpacking.py sets the
# environment. A line "@step NAME" tells the progress.
#
#   root/ARCH    the packages of an architecture, unpacked
#   out/         files for the caller
umask 022
mkdir -p tmp packages && chmod 1777 tmp
echo "@step downloading packages"
# mmdebstrap knows the archive's address and keys for each suite. Without packages it writes apt's
# configuration and lists, and fetch.sh downloads.
for arch in $BOUGH_ARCHES; do
    mkdir -p "packages/$arch"
    case $arch in
        "$BOUGH_ARCH") names=$BOUGH_PACKAGES metapackages=$BOUGH_METAPACKAGES ;;
        *) names=$BOUGH_TOOLS metapackages= ;;
    esac
    BOUGH_NAMES=$names BOUGH_METAPACKAGES=$metapackages BOUGH_INTO=/mnt/packages/$arch TMPDIR=/mnt/tmp \
        mmdebstrap --mode=unshare \
        --variant=custom --format=directory --architectures="$arch" --skip=check/qemu \
        --setup-hook='sh /mnt/mirror.sh "$1"' \
        --customize-hook='sh /mnt/fetch.sh "$1"' \
        "$BOUGH_SUITE" "/mnt/tmp/apt-$arch"
    echo "@step unpacking packages"
    mkdir -p "root/$arch"
    for package in "packages/$arch"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner -C "root/$arch"
    done
done
for package in "packages/$BOUGH_ARCH"/*.deb; do
    dpkg-deb --showformat '${Package} ${Version}\n' --show "$package"
done | sort > out/packages

# Programs of the packages for this host's processor are started through their own loader.
native=/mnt/root/$BOUGH_NATIVE
first() {
    find "$native/lib" "$native/lib64" "$native/usr/lib" "$native/usr/lib64" -name "$1" 2>/dev/null |
        sort | head -n 1
}
# run_native LIBRARIES PROGRAM ARGUMENT...: LIBRARIES are names of files whose directories the loader searches.
run_native() {
    libraries=
    for library in $1; do libraries=$libraries:$(dirname "$(first "$library")"); done
    shift
    "$(first 'ld-linux*.so.*')" --inhibit-cache --library-path "${libraries#:}" "$@"
}
