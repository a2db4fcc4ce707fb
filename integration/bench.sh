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

# peer COMMAND: the time from its exec until QEMU's guest of that name is there, for a guest without disks.
peer() {
    local name=$1
    if ! command -v "$name" >/dev/null; then
        echo "skipped: there is no $name"
        return
    fi
    local work begin end
    work=$(mktemp -d)
    cat >"$work/guest.xml" <<XML
<domain type='qemu'>
  <name>vmward-bench</name>
  <memory unit='MiB'>128</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices/>
</domain>
XML
    begin=$(date +%s%N)
    case $name in
        virt-qemu-run)
            "$name" -v -r "$work/root" "$work/guest.xml" >"$work/log" 2>&1 &
            timeout 60 sh -c "until grep -q 'guest running' '$work/log'; do sleep 0.005; done" ||
                { cat "$work/log"; echo "skipped: virt-qemu-run does not start a guest here"; }
            end=$(date +%s%N)
            kill $! 2>/dev/null || true
            wait $! || true
            ;;
        virsh)
            if ! virsh create "$work/guest.xml" >"$work/log" 2>&1; then
                echo "skipped: virsh create: $(tail -n 1 "$work/log")"
                rm -rf "$work"
                return
            fi
            end=$(date +%s%N)
            virsh destroy vmward-bench >/dev/null
            ;;
    esac
    echo "$name, exec to running, no disks, once: $(((end - begin) / 1000000)) ms"
    rm -rf "$work"
}
peer virt-qemu-run
peer virsh

built=$TARGET/release/vmward
[ "$profile" = bench ] || built=$TARGET/debug/vmward
VMWARD=$built integration/bench-many.sh || [ $? = 77 ]
