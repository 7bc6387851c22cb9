#!/bin/sh
# CPython without a GIL in /opt of a Debian folder, from the source that Debian ships:
#
#     sh tools/free_threaded.sh FOLDER
#
# Takes the newest source of the minor version that the mirror has. Minutes.
set -e
folder=$1
version=3.14
target=/opt/python${version}t
if [ -x "$folder$target/bin/python${version}t" ]; then
    exit 0
fi
pool=${DEBIAN_MIRROR:-http://deb.debian.org/debian}/pool/main/p/python$version
source=$folder/opt/python.tar.xz
patch=30
until curl --fail --silent --output "$source" "$pool/python${version}_$version.$patch.orig.tar.xz"; do
    patch=$((patch - 1))
    [ "$patch" -ge 0 ] || { echo "error: no source of Python $version in $pool" >&2; exit 1; }
done
chroot "$folder" sh -ec "
    rm -rf /opt/source && mkdir /opt/source
    tar -xf /opt/python.tar.xz -C /opt/source --strip-components=1
    cd /opt/source
    ./configure --quiet --disable-gil --prefix=$target --with-ensurepip=install
    make -s -j$(nproc)
    make -s install
" >"$folder.python.log" 2>&1 || { tail -20 "$folder.python.log" >&2; exit 1; }
rm -rf "$source" "$folder/opt/source"
