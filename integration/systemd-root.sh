#!/bin/bash
# Puts another Debian suite's systemd, machined and QEMU into a root directory of its own, for the scenarios that boot one:
#
#     integration/systemd-root.sh trixie DIR                                    systemd 257
#     SYSTEMD_ROOT=DIR integration/scenarios.sh systemd-unit systemd-machined
#
# Nothing gets into the machine (see lib/suite.sh). Packages are unpacked and not configured: what that leaves out and a
# boot needs is done here. Takes root.
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/suite.sh"

suite=${1:?usage: systemd-root.sh SUITE DIR}
mkdir -p "${2:?usage: systemd-root.sh SUITE DIR}"
dir=$(cd "$2" && pwd)
if [ -e "$dir/etc/passwd" ]; then
    exit
fi
packages() {
    printf '%s\n' base-files base-passwd bash bsdutils coreutils dash dbus dbus-daemon diffutils findutils grep gzip hostname \
        iproute2 kmod libc-bin login mawk mount passwd procps python3 python3-minimal qemu-system-x86 qemu-utils sed \
        systemd systemd-container systemd-sysv tar udev util-linux
}
say "fetching systemd of $suite into $dir"
suite_fetch "$suite" "$dir" packages
mkdir -p "$dir"/{dev,proc,run,sys,tmp,mnt,root,srv,etc/systemd/system,var/lib,var/cache,var/tmp}
ln -sfn /run "$dir/var/run"
cp "$dir/usr/share/base-files/"{nsswitch.conf,profile} "$dir/etc/" 2>/dev/null || true
[ -e "$dir/usr/bin/sh" ] || ln -s dash "$dir/usr/bin/sh"
[ -e "$dir/usr/bin/awk" ] || ln -s mawk "$dir/usr/bin/awk"
touch "$dir/etc/fstab" "$dir/etc/shadow" "$dir/etc/gshadow"
chroot "$dir" /sbin/ldconfig
cp "$dir/usr/share/base-passwd/passwd.master" "$dir/etc/passwd"
cp "$dir/usr/share/base-passwd/group.master" "$dir/etc/group"
chroot "$dir" /usr/bin/systemd-sysusers
chroot "$dir" /usr/bin/systemctl --version | sed -n 1p >&2
