#!/bin/sh
# Installs a wheel in a Debian folder that has no compiler, and runs the demo and the self-test:
#
#     sh tools/wheel_check.sh WHEEL
#
# Needs root, debootstrap and network access. The suite is the one with the wheel's Python.
set -e
wheel=$1
case $(basename "$wheel") in
    *-cp311-*) suite=bookworm ;;
    *-cp313-*) suite=trixie ;;
    *-cp314-*) suite=sid ;;
    *) echo "error: no Debian suite has the Python of '$wheel'; make wheel PYTHON=python3.11" >&2; exit 1 ;;
esac
case $wheel in
    *manylinux_2_[0-9]_* | *manylinux_2_1[0-9]_* | *manylinux_2_2[0-8]_* | *musllinux*) ;;
    *) echo "error: $wheel is not for manylinux_2_28 or older" >&2; exit 1 ;;
esac
folder=$(pwd)/.matrix/$suite-bare
sh tools/debian.sh "$suite" "$folder" python3 python3-venv
rm -rf "$folder/check" && mkdir "$folder/check"
cp "$wheel" "$folder/check"
unshare --mount sh -ec "
    mount --bind /proc $folder/proc
    mount --bind /dev $folder/dev
    exec chroot $folder sh -ec '
        cd /check
        for compiler in cc gcc clang; do
            if command -v \$compiler; then echo error: there is a compiler >&2; exit 1; fi
        done
        python3 -m venv venv
        venv/bin/pip install --quiet --only-binary :all: \"\$(echo *.whl)[cli]\"
        venv/bin/selfdistill-fast example --out demo
        ls -l demo
        venv/bin/selfdistill-fast info --check
    '
"
echo "$wheel works on $suite without a compiler"
