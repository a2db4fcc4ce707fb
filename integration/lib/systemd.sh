# A systemd of its own as PID 1, over this machine's own root or that in $SYSTEMD_ROOT (systemd-root.sh makes one), of which it
# changes nothing. To be sourced; needs scenario.sh. What it sees: that root's programs, the scenario's $WORK, vmward, and the
# units in $SYSTEMD_UNITS.

SYSTEMD_UNITS=$WORK/units
SYSTEMD_PROGRAM=/lib/systemd/systemd
SYSTEMD_ROOT=$(realpath "${SYSTEMD_ROOT:-/}")
# Not the machine's business in here: devices, logins, time, network.
SYSTEMD_MASKED="systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket
    systemd-logind.service systemd-networkd.service systemd-resolved.service systemd-timesyncd.service getty.target
    systemd-hwdb-update.service systemd-modules-load.service proc-sys-fs-binfmt_misc.automount ldconfig.service
    systemd-firstboot.service systemd-update-done.service systemd-journal-catalog-update.service"
SYSTEMD_OUTER= SYSTEMD_INIT=

# systemd_impossible: says why this machine cannot do it; fails if it can.
systemd_impossible() {
    if [ "$(id -u)" != 0 ]; then
        echo "booting a systemd takes root"
    elif [ ! -x "$SYSTEMD_ROOT$SYSTEMD_PROGRAM" ]; then
        echo "there is no systemd"
    elif [ -z "$(systemd_cgroup)" ]; then
        echo "there is no cgroup2 file system"
    elif ! unshare --mount --pid --fork --uts --ipc --net --cgroup true 2>/dev/null; then
        echo "namespaces are not permitted here"
    elif ! unshare --mount bash -euc '
            mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/root"
            mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"' \
            sh "$WORK" 2>/dev/null; then
        echo "overlays are not permitted here"
    elif ! mkdir "$(systemd_cgroup)" 2>/dev/null; then
        echo "control groups cannot be made here"
    else
        rmdir "$(systemd_cgroup)"
        return 1
    fi
}

# systemd_cgroup: the control group that it is to be in.
systemd_cgroup() {
    awk -v name="vmward-$SCENARIO-$$" '$3 == "cgroup2" { print $2 "/" name; exit }' /proc/mounts
}

# systemd_up: boots it, and waits until units can be started.
systemd_up() {
    local tries=600 unit outer cgroup
    cgroup=$(systemd_cgroup)
    mkdir -p "$SYSTEMD_UNITS" "$WORK/overlay"
    for unit in $SYSTEMD_MASKED; do
        ln -s /dev/null "$SYSTEMD_UNITS/$unit"
    done
    mkdir "$cgroup"
    (
        # The new namespace of control groups begins where it is made.
        echo "$BASHPID" >"$cgroup/cgroup.procs"
        exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup --propagation private \
            bash -euc 'WORK=$2; . "$1"; systemd_inside "${@:2}"' systemd \
            "${BASH_SOURCE[0]}" "$WORK" "$vmward" "$SYSTEMD_UNITS" "$SYSTEMD_PROGRAM" "$SYSTEMD_ROOT"
    ) >"$WORK/systemd.log" 2>&1 </dev/null &
    outer=$!
    SYSTEMD_OUTER=$outer
    until [ "$(systemd_run systemctl is-active basic.target 2>/dev/null)" = active ]; do
        # No line ends there, which read takes for a failure.
        read -r SYSTEMD_INIT _ <"/proc/$outer/task/$outer/children" || true
        [ $((tries--)) -gt 0 ] && kill -0 $outer || {
            cat "$WORK/systemd.log"
            systemd_run systemctl list-jobs || true
            die "systemd does not come up"
        }
        sleep 0.05
    done
}

# systemd_inside WORK VMWARD UNITS PROGRAM LOWER: becomes that systemd, in the namespaces.
systemd_inside() {
    local work=$1 vmward=$2 units=$3 program=$4 lower=$5 root=$1/overlay/root node
    ip link set lo up 2>/dev/null || true
    mount -t tmpfs tmpfs "$work/overlay"
    mkdir "$work"/overlay/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$work/overlay/upper,workdir=$work/overlay/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    for node in null zero full random urandom tty; do
        touch "$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    touch "$root/dev/console"
    mount --bind /dev/null "$root/dev/console"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    # Nothing of this machine is mounted or enabled in there.
    : >"$root/etc/fstab"
    mount --bind "$units" "$root/etc/systemd/system"
    mkdir -p "$root$work"
    mount --bind "$work" "$root$work"
    install -D /dev/null "$root/usr/local/bin/vmward"
    mount --bind "$vmward" "$root/usr/local/bin/vmward"
    cd "$root"
    mkdir -p mnt
    pivot_root . mnt
    umount -l /mnt
    # Credentials come to a service by a mount that has to reach its own namespace.
    mount --make-rshared /
    exec env -i container=vmward-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
        "$program" --system --unit=basic.target --show-status=no
}

# systemd_run COMMAND...: runs a command where that systemd is.
systemd_run() {
    nsenter --target "$SYSTEMD_INIT" --mount --pid --uts --ipc --net --cgroup --root --wd \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 "$@"
}

# journal ARGUMENT...: journalctl there, when journald has taken in what was said.
journal() {
    systemd_run journalctl --sync && systemd_run journalctl --no-pager "$@"
}

# restarted SUPERVISOR: whether there is another one than that, and it answers. `of` is the scenario's: a property of its unit.
restarted() {
    local now
    now=$(of MainPID)
    [ "$now" != 0 ] && [ "$now" != "$1" ] && [ "$(of ActiveState)" = active ]
}

# nothing_left [DIR]: no process and no file of a guest.
nothing_left() {
    says_nothing systemd_run sh -c 'ls -A "$0" && { pgrep qemu-system || [ $? = 1 ]; }' "${1:-/run/vmward}"
}

# systemd_down: ends it, and with it all that runs in it.
systemd_down() {
    local cgroup tries=100
    cgroup=$(systemd_cgroup)
    [ -z "$SYSTEMD_INIT" ] || kill -KILL "$SYSTEMD_INIT" 2>/dev/null || true
    # Its end is no news, which the shell would tell.
    [ -z "$SYSTEMD_OUTER" ] || wait "$SYSTEMD_OUTER" 2>/dev/null || true
    SYSTEMD_OUTER= SYSTEMD_INIT=
    # A group that had a process in it is busy for a moment longer.
    while [ -d "$cgroup" ] && [ $((tries--)) -gt 0 ]; do
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
    done
}
