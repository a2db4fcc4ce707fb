#!/bin/bash
# Puts another Debian suite's QEMU into a directory of its own, to test with, and prints its path for `<emulator>`:
#
#     integration/qemu-root.sh trixie DIR       QEMU 10.0
#     integration/qemu-root.sh unstable DIR     QEMU 11.1 (November 2026)
#     VMWARD_TEST_EMULATOR=DIR/qemu-system-x86_64 cargo test
#
# Nothing gets into the machine (see lib/suite.sh). QEMU runs with the libraries of its own suite through their dynamic
# loader.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/suite.sh"

suite=${1:?usage: qemu-root.sh SUITE DIR}
mkdir -p "${2:?usage: qemu-root.sh SUITE DIR}"
dir=$(cd "$2" && pwd)
emulator=$dir/qemu-system-x86_64
if [ -x "$emulator" ]; then
    echo "$emulator"
    exit
fi

# Modules that are not in here would be taken from the machine's QEMU, which is of another version, and refused.
packages() {
    printf '%s\n' qemu-system-x86 qemu-utils qemu-block-extra
    apt-cache pkgnames qemu-system-modules- | sort
}
say "fetching QEMU of $suite into $dir"
suite_fetch "$suite" "$dir" packages

libraries=$dir/usr/lib/x86_64-linux-gnu
for program in qemu-system-x86_64 qemu-img; do
    firmware=
    if [ "$program" = qemu-system-x86_64 ]; then
        firmware="-L '$dir/usr/share/qemu' -L '$dir/usr/share/seabios' -L '$dir/usr/lib/ipxe/qemu'"
    fi
    cat >"$dir/$program" <<WRAPPER
#!/bin/sh
export QEMU_MODULE_DIR='$libraries/qemu'
exec '$libraries/ld-linux-x86-64.so.2' --library-path '$libraries:$libraries/pulseaudio:$libraries/ceph' '$dir/usr/bin/$program' $firmware "\$@"
WRAPPER
    chmod 755 "$dir/$program"
done
"$emulator" --version >&2
echo "$emulator"
