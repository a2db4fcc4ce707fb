#!/bin/bash
# Many guests on one host, each under its unit, with systemd as PID 1: what the supervisors take while nothing happens,
# and how long `vmward list` takes. Prints a table. The guests have no system: they wait in the firmware.
#
#     integration/bench-many.sh              1, 10 and 50 guests
#     integration/bench-many.sh 1 5          other numbers
#     VMWARD=target/release/vmward ...       another vmward than target/debug/vmward
#     WATCHDOG=0 ...                         without the units' watchdog, which is what wakes supervisors up
. "$(dirname "$0")/lib/scenario.sh"
. "$REPO/integration/lib/systemd.sh"
packages_install "$PACKAGES_TEST"
if why=$(systemd_impossible); then
    skip "$why"
fi
vmward=$(realpath "${VMWARD:-$vmward}")
SECONDS_IDLE=60
tidy_more() { systemd_down; }
systemd_up
systemd_run vmward install-units >/dev/null 2>&1
mkdir -p "$SYSTEMD_UNITS/vmward@.service.d"
printf '[Service]\nEnvironment="VMWARD_OPTIONS=--stop-timeout 0"\nWatchdogSec=%s\nTimeoutStartSec=600\n' "${WATCHDOG:-60}" >"$SYSTEMD_UNITS/vmward@.service.d/bench.conf"
systemd_run systemctl daemon-reload

# supervisors: their process numbers, as this shell's own namespace has them.
supervisors() {
    local cgroup
    cgroup=$(systemd_cgroup)
    for procs in "$cgroup"/machine.slice/*/vmward@*.service/cgroup.procs "$cgroup"/machine.slice/vmward@*.service/cgroup.procs; do
        [ -e "$procs" ] || continue
        while read -r pid; do
            [ "$(cat "/proc/$pid/comm")" != vmward ] || echo "$pid"
        done <"$procs"
    done
}

# sum FILE FIELD PID...: of a field of /proc/PID/FILE.
sum() {
    local file=$1 field=$2
    shift 2
    for pid in "$@"; do
        cat "/proc/$pid/$file"
    done | awk -v field="$field:" '$1 == field { n += $2 } END { print n + 0 }'
}

echo "$("$vmward" --version), $vmward, $(nproc) processors"
printf '%7s %14s %14s %18s %16s\n' guests "RSS each" "PSS each" "wake-ups/min each" "vmward list"
running=0
for count in "${@:-1 10 50}"; do
    for count in $count; do
        while [ $running -lt $count ]; do
            running=$((running + 1))
            systemd_run sh -c "cat >/etc/vmward/guests/guest$running.xml" <<XML
<domain type='qemu'>
  <name>guest$running</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices/>
</domain>
XML
            systemd_run systemctl start "vmward@guest$running"
        done
        mapfile -t pids < <(supervisors)
        [ ${#pids[@]} = $count ] || die "there are ${#pids[@]} supervisors of $count guests"
        # The firmware looks for something to boot, and machined for them.
        sleep 20
        before=$(sum status voluntary_ctxt_switches "${pids[@]}")
        sleep $SECONDS_IDLE
        after=$(sum status voluntary_ctxt_switches "${pids[@]}")
        rss=$(sum smaps_rollup Rss "${pids[@]}") pss=$(sum smaps_rollup Pss "${pids[@]}")
        list=$(systemd_run python3 -c '
import statistics, subprocess, sys, time
took = []
for _ in range(11):
    begin = time.monotonic()
    said = subprocess.run(["vmward", "list"], capture_output=True, check=True).stdout.decode()
    took.append((time.monotonic() - begin) * 1000)
assert said.count(" running ") == int(sys.argv[1]), said
print(f"{statistics.median(took):.1f} ms")' $count)
        printf '%7d %10d KiB %10d KiB %18s %16s\n' $count $((rss / count)) $((pss / count)) \
            "$(awk -v n=$((after - before)) -v c=$count -v s=$SECONDS_IDLE 'BEGIN { printf "%.1f", n / c / s * 60 }')" "$list"
    done
done
