#!/bin/bash
# Puts another Debian suite's libvirt daemon, with nothing but its secrets, into a directory of its own to be run there
# (see lib/libvirt.sh), and prints the directory:
#
#     integration/libvirt-root.sh unstable DIR     libvirt 12.8 (November 2026), which encrypts what it keeps
#
# Nothing gets into the machine (see lib/suite.sh).
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"
. "$REPO/integration/lib/suite.sh"

suite=${1:?usage: libvirt-root.sh SUITE DIR}
mkdir -p "${2:?usage: libvirt-root.sh SUITE DIR}"
dir=$(cd "$2" && pwd)
if [ ! -e "$dir/etc/passwd" ]; then
    say "fetching libvirt of $suite into $dir"
    suite_fetch "$suite" "$dir" printf '%s\n' libvirt-daemon libvirt-daemon-driver-secret libvirt-clients
    mkdir -p "$dir"/{proc,dev,run,tmp}
    ln -sfn ../run "$dir/var/run"
    echo 'root:x:0:' >"$dir/etc/group"
    # What libvirtd wants to know of its user; the last step, by which the directory is known to be complete.
    echo 'root:x:0:0::/root:/bin/false' >"$dir/etc/passwd"
fi
echo "$dir"
