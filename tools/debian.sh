#!/bin/sh
# A folder with a suite of Debian in it, to chroot into:
#
#     sh tools/debian.sh SUITE FOLDER [PACKAGE...]
#
# Needs root, debootstrap and network access. A folder that is complete is left as it is.
# The resolver and the certificates of this machine hold inside as well.
set -e
suite=$1
folder=$2
shift 2
wanted=$(echo ca-certificates "$@" | tr ' ' ',')
if [ "$(cat "$folder/.complete" 2>/dev/null)" = "$suite $wanted" ]; then
    exit 0
fi
if ! command -v debootstrap >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "error: $0 needs root and debootstrap (apt install debootstrap)" >&2
    exit 1
fi
rm -rf --one-file-system "$folder"
mkdir -p "$folder"
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid  # newer than this debootstrap
unshare --mount debootstrap --variant=minbase --include="$wanted" "$suite" "$folder" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" "$script" >"$folder.log" 2>&1 ||
    { tail -20 "$folder.log" >&2; exit 1; }
cp /etc/resolv.conf "$folder/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/"
echo "$suite $wanted" >"$folder/.complete"
