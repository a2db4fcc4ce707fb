#!/bin/bash
# What vmward adds: one after the other, in one run on one machine, a release build's start beside bare QEMU's with the
# same arguments, its way of unlocking, attach and detach beside raw QMP, the stop of a killed guest; virt-qemu-run and
# `virsh create` where they are installed; and, where a systemd can be booted, 1, 10 and 50 idle guests.
#
#     integration/bench.sh
#     PROFILE=dev integration/bench.sh      a debug build, to try the script: its times say nothing
set -euo pipefail
. "$(dirname "$0")/lib/common.sh"
. "$REPO/integration/lib/packages.sh"

profile=${PROFILE:-bench}
packages_install "$PACKAGES_TEST"
rust_install
cd "$REPO"
echo "$(qemu-system-x86_64 --version | sed -n 1p), $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg)"
for bench in start hotplug unlock; do
    cargo bench --locked --quiet --profile "$profile" --bench $bench
done

built=$TARGET/release/vmward
[ "$profile" = bench ] || built=$TARGET/debug/vmward
VMWARD=$built integration/bench-many.sh || [ $? = 77 ]
