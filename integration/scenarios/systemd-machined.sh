#!/bin/bash
# A guest in machinectl's list, and machinectl's buttons.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/systemd.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "$PACKAGES_TEST
machinectl systemd-container
dbus-daemon dbus"
if why=$(systemd_impossible); then
    skip "$why"
fi
. "$REPO/integration/lib/guest.sh"
guest=${VMWARD_TEST_GUEST:-$TARGET/guest}
[ -e "$guest/initramfs.gz" ] || guest_build "$guest"
tidy_more() { systemd_down; }
mkdir "$WORK/guest"
cp "$guest/vmlinuz" "$guest/initramfs.gz" "$WORK/guest/"
chmod 755 "$WORK"
systemd_up
ctl() { systemd_run systemctl "$@"; }
ended() { [ "$(of ActiveState)" = inactive ]; }
machinectl() { systemd_run machinectl --no-pager "$@"; }
of() { ctl show --property="$1" --value vmward@web1.service; }
state() { systemd_run vmward status --json web1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])'; }
# call METHOD [PARAMETERS]: a call of io.systemd.MachineInstance, as varlinkctl would make it.
call() {
    systemd_run python3 -c '
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/vmward/web1/machine.sock")
method = sys.argv[1] if "." in sys.argv[1][1:] else "io.systemd.MachineInstance." + sys.argv[1]
call = {"method": method}
if len(sys.argv) > 2:
    call.update(json.loads(sys.argv[2]))
s.sendall(json.dumps(call).encode() + b"\0")
reply = b""
while not reply.endswith(b"\0"):
    piece = s.recv(65536)
    if not piece:
        break
    reply += piece
reply = json.loads(reply.split(b"\0")[0])
print(json.dumps(reply))
sys.exit("error" in reply)' "$@"
}

systemd_run vmward install-units >/dev/null
uuid=5c2f9a4e-0f2b-4a53-9a55-6d4bcd6f8a01
systemd_run sh -c 'cat >/etc/vmward/guests/web1.xml' <<XML
<domain type='qemu'>
  <name>web1</name>
  <uuid>$uuid</uuid>
  <memory unit='MiB'>256</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>$WORK/guest/vmlinuz</kernel>
    <initrd>$WORK/guest/initramfs.gz</initrd>
    <cmdline>console=ttyS0 quiet panic=-1</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <serial type='file'><source path='/var/lib/vmward/serial.log'/></serial>
  </devices>
</domain>
XML
mkdir -p "$SYSTEMD_UNITS/vmward@web1.service.d"
# The guest's kernel is where a service with a /tmp of its own does not see it.
printf '[Service]\nPrivateTmp=no\nEnvironment="VMWARD_OPTIONS=--stop-timeout 120"\n' >"$SYSTEMD_UNITS/vmward@web1.service.d/scenario.conf"
ctl daemon-reload
booted() { systemd_run sh -c "[ \$(grep -c 'guest: ready' /var/lib/vmward/serial.log) -ge $1 ]"; }
listed() { machinectl list --no-legend | "${1:-has}" -E '^web1 +vm +vmward'; }
promise "the guest starts" ctl start vmward@web1
until_true 60 listed
promise "machinectl lists it, class vm" listed
promise "with its UUID" equal "$(machinectl show web1 --property=Id --value)" "${uuid//-/}"
promise "in its unit" equal "$(machinectl show web1 --property=Unit --value)" vmward@web1.service
promise "and shows it" machinectl status web1
until_true 180 booted 1
supervisor=$(of MainPID)
ctl kill --kill-whom=main --signal=KILL vmward@web1
until_true 60 restarted "$supervisor"
leader() { [ "$(machinectl show web1 --property=Leader --value)" = "$(of MainPID)" ]; }
until_true 60 leader
promise "the next supervisor takes the entry over" leader
promise "machinectl reboot restarts the guest" machinectl reboot web1
until_true 180 booted 2
promise "in the same unit" equal "$(of ActiveState) $(state)" "active running"

promise "what it serves for newer ones says what it is" bash -c 'grep -q io.systemd.MachineInstance' <<<"$(call org.varlink.service.GetInfo)"
promise "and how" bash -c 'grep -q "method Describe()"' \
    <<<"$(call org.varlink.service.GetInterfaceDescription '{"parameters": {"interface": "io.systemd.MachineInstance"}}')"
promise "it pauses the guest" call Pause
promise "which is paused" equal "$(state)" paused
promise "and describes it" bash -c 'grep -q "\"running\": false, \"status\": \"paused\", \"memory\": {\"configuredBytes\": 268435456"' <<<"$(call Describe)"
call SubscribeEvents '{"more": true, "parameters": {"filter": ["RESUME"]}}' >"$WORK/event" &
SERVERS+=($!)
promise "it goes on" call Resume
promise "and is running" bash -c 'grep -q "\"running\": true, \"status\": \"running\""' <<<"$(call QueryStatus)"
# The subscriber may not have been there yet.
resumed() { grep -q '"event": "RESUME"' "$WORK/event" || { call Pause && call Resume && sleep 0.3 && false; }; }
until_true 30 resumed
promise "which subscribers are told" true
refused "what it does not serve it says" 1 'org.varlink.service.MethodNotFound' call AddStorage

version=$(systemd_run systemctl --version | awk 'NR == 1 { print $2 }')
if [ "${version%%[.~]*}" -ge 261 ]; then
    promise "machinectl $version knows its socket and pauses the guest" machinectl pause web1
    promise "which is paused then" equal "$(state)" paused
    promise "and lets it go on" machinectl resume web1
    promise "which runs then" equal "$(state)" running
    promise "varlinkctl calls it" systemd_run varlinkctl call /run/vmward/web1/machine.sock \
        io.systemd.MachineInstance.Describe '{}'
else
    echo "  skipped: machinectl pause and resume: systemd $version has neither"
fi
promise "machinectl poweroff asks the guest to" machinectl poweroff web1
until_true 180 ended
promise "which ends well" equal "$(of Result) $(of ExecMainStatus)" "success 0"
until_true 30 listed lacks
promise "and is listed no more" listed lacks

ctl start vmward@web1
until_true 60 listed
until_true 180 booted 1
promise "machinectl terminate stops the unit" machinectl terminate web1
until_true 180 ended
promise "well" equal "$(of Result)" success
ctl start vmward@web1
promise "Terminate ends it at once" call Terminate
until_true 60 ended
promise "and leaves nothing" nothing_left
done_well
