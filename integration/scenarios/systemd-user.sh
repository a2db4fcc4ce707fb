#!/bin/bash
# A user's guest under the user's own service manager.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/systemd.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "$PACKAGES_TEST"
if why=$(systemd_impossible); then
    skip "$why"
fi
tidy_more() { systemd_down; }
systemd_up
systemd_run useradd --create-home --shell /bin/sh tester
uid=$(systemd_run id -u tester)
# What logind and PAM would do at a login.
cat >"$SYSTEMD_UNITS/manager.service" <<UNIT
[Service]
Type=notify
User=tester
Delegate=yes
RuntimeDirectory=user/$uid
RuntimeDirectoryMode=0700
Environment=XDG_RUNTIME_DIR=/run/user/$uid
ExecStart=/lib/systemd/systemd --user
KillMode=mixed
UNIT
systemd_run systemctl daemon-reload
promise "a user has a service manager" systemd_run systemctl start manager.service
# as COMMAND...: as the user.
as() {
    systemd_run setpriv --reuid="$uid" --regid="$uid" --clear-groups \
        env HOME=/home/tester XDG_RUNTIME_DIR="/run/user/$uid" "$@"
}
ctl() { as systemctl --user "$@"; }
of() { ctl show --property="$1" --value vmward@web1.service; }
qemu() { as vmward status --json web1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["qemu"])'; }

promise "the user installs units" as vmward install-units --user
image=/home/tester/web1.luks
as vmward secret generate --usage-volume $image >/dev/null
as vmward volume create $image --kdf fast --format raw --size 16M --secret $image
as mkdir -p /home/tester/.config/vmward/guests /home/tester/.config/systemd/user/vmward@web1.service.d
guest_xml web1 $image "usage='$image'" | as sh -c 'cat >/home/tester/.config/vmward/guests/web1.xml'
printf '[Service]\nEnvironment="VMWARD_OPTIONS=--stop-timeout 1 --master-key memory"\n' |
    as sh -c 'cat >/home/tester/.config/systemd/user/vmward@web1.service.d/scenario.conf'
ctl daemon-reload
promise "enable --now is all it takes" ctl enable --now vmward@web1
promise "its guest runs" bash -c 'grep -q running' <<<"$(as vmward list)"
promise "as the user" equal "$(systemd_run stat -c %U "/proc/$(qemu)")" tester
supervisor=$(of MainPID) qemu=$(qemu)
ctl kill --kill-whom=main --signal=KILL vmward@web1
until_true 60 restarted "$supervisor"
promise "a supervisor that is killed is followed by another, of the same guest" equal "$(qemu)" "$qemu"
promise "to which the service manager gave the key" \
    eval 'journal _PID="$(of MainPID)" | lacks "given a new one"'
promise "it stops" ctl stop vmward@web1
promise "well" equal "$(of Result)" success
promise "and nothing of it is left" nothing_left "/run/user/$uid/vmward"
done_well
