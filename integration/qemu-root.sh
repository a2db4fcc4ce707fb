#!/bin/bash
# Puts another Debian suite's QEMU into a directory of its own, to test with, and prints its path for `<emulator>`:
#
#     integration/qemu-root.sh trixie DIR       QEMU 10.0
#     integration/qemu-root.sh unstable DIR     QEMU 11.1 (November 2026)
#     VMWARD_TEST_EMULATOR=DIR/qemu-system-x86_64 cargo test
#
# Neither root nor a chroot is needed and the machine's own packages and apt sources stay as they are: apt works on
# lists, a package database and a cache inside DIR, so nothing of the suite can get into the machine. QEMU runs with
# the libraries of its own suite through their dynamic loader.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"

suite=${1:?usage: qemu-root.sh SUITE DIR}
mkdir -p "${2:?usage: qemu-root.sh SUITE DIR}"
dir=$(cd "$2" && pwd)
emulator=$dir/qemu-system-x86_64
if [ -x "$emulator" ]; then
    echo "$emulator"
    exit
fi

mirror=$(debian_mirror)
mkdir -p "$dir"/apt/{state/lists/partial,cache/archives/partial,sources.d,preferences.d} "$dir"/usr/{bin,sbin,lib,lib64}
for merged in bin sbin lib lib64; do
    ln -sfn "usr/$merged" "$dir/$merged"
done
: >"$dir/apt/status"
for s in "${suite%-backports}" "$suite"; do
    echo "deb [signed-by=$DEBIAN_KEYRING] $mirror $s main"
done | sort -u >"$dir/apt/sources.list"
cat >"$dir/apt/apt.conf" <<CONF
Dir::State "$dir/apt/state";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "$dir/apt/sources.d";
Dir::Etc::preferences "$dir/apt/preferences";
Dir::Etc::preferencesparts "$dir/apt/preferences.d";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
CONF
export APT_CONFIG=$dir/apt/apt.conf
say "fetching QEMU of $suite into $dir"
apt-get -qq update
# Modules that are not in here would be taken from the machine's QEMU, which is of another version, and refused.
modules=$(apt-cache pkgnames qemu-system-modules- | sort)
apt-get -qq install --yes --download-only -t "$suite" qemu-system-x86 qemu-utils qemu-block-extra $modules >/dev/null
for package in "$dir"/apt/cache/archives/*.deb; do
    # dpkg-deb -x would put a directory in the place of the link that lib is: packages of Debian 12 still have ./lib.
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$dir"
done
rm -rf "$dir/apt/cache" "$dir/apt/state"

libraries=$dir/usr/lib/x86_64-linux-gnu
for program in qemu-system-x86_64 qemu-img; do
    firmware=
    if [ "$program" = qemu-system-x86_64 ]; then
        firmware="-L '$dir/usr/share/qemu' -L '$dir/usr/share/seabios'"
    fi
    cat >"$dir/$program" <<WRAPPER
#!/bin/sh
export QEMU_MODULE_DIR='$libraries/qemu'
exec '$libraries/ld-linux-x86-64.so.2' --library-path '$libraries:$libraries/pulseaudio' '$dir/usr/bin/$program' $firmware "\$@"
WRAPPER
    chmod 755 "$dir/$program"
done
"$emulator" --version >&2
echo "$emulator"
