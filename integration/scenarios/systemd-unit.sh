#!/bin/bash
# A guest under its unit, with systemd as PID 1: every way to start it and to end it, and supervisors that die.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/systemd.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "$PACKAGES_TEST"
if why=$(systemd_impossible); then
    skip "$why"
fi
tidy_more() {
    # The keyring is the machine's.
    [ -z "${brought:-}" ] || systemd_run vmward --keystore keyring: secret undefine "$brought" 2>/dev/null
    systemd_down
}

# The units in the source, checked without a systemd.
root=$WORK/root
promise "units are installed below a directory" "$vmward" install-units --root "$root"
promise "of a user as well" "$vmward" install-units --user --root "$root"
unit=$root/etc/systemd/system/vmward@.service
mkdir "$WORK/rated"
cp "$unit" "${unit%/*}/vmward-secrets@.service" "$WORK/rated"
promise "the unit's exposure is rated 3.0 or less" \
    systemd-analyze security --offline=true --threshold=30 "$WORK/rated/vmward@.service"
promise "so is that of the one that brings secrets" \
    systemd-analyze security --offline=true --threshold=30 "$WORK/rated/vmward-secrets@.service"
refused "somebody who may not install says so" 77 "could not be written" \
    setpriv --reuid=65534 --regid=65534 --clear-groups "$vmward" install-units --root "$root"
cp "$vmward" "$WORK/with a space"
refused "a path that units cannot name is refused" 78 "units cannot start" "$WORK/with a space" install-units --root "$root"
rm "$WORK/with a space"

systemd_up
promise "a systemd runs as PID 1" equal "$(systemd_run cat /proc/1/comm)" systemd
# What the machine has of vmward is not this scenario's.
systemd_run mkdir -p /etc/vmward/guests /var/lib/vmward /var/cache/vmward /usr/local/sbin
promise "units are installed where systemd runs" systemd_run vmward install-units
promise "and are right" systemd_run systemd-analyze verify vmward@web1.service vmward-secrets.target
promise "with QEMU's user" systemd_run id vmward-qemu

# ctl ARGUMENT...: systemctl, there.
ctl() { systemd_run systemctl "$@"; }
# of PROPERTY [UNIT]: a property of the guest's unit.
of() { ctl show --property="$1" --value "${2:-vmward@web1.service}"; }
# status_json FIELD: of the guest.
guest_is() { systemd_run vmward status --json web1 | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }

image=/var/lib/vmward/web1.luks hot=/var/lib/vmward/hot.luks
systemd_run vmward secret generate --usage-volume $image >/dev/null
systemd_run vmward secret generate --usage-volume $hot >/dev/null
systemd_run vmward volume create $image --kdf fast --format raw --size 16M --secret $image
# As qemu-img makes them: the key takes its time.
systemd_run vmward volume create $hot --kdf slow --format raw --size 16M --secret $hot
guest_xml web1 $image "usage='$image'" | systemd_run sh -c 'cat >/etc/vmward/guests/web1.xml'
systemd_run sh -c 'cat >/run/hot.xml' < <(guest_xml web1 $hot "usage='$hot'" | sed -n '/<disk/,/<.disk>/s/vda/vdb/;/<disk/,/<.disk>/p')

# drop_in TEXT: settings of this guest's unit.
drop_in() {
    mkdir -p "$SYSTEMD_UNITS/vmward@web1.service.d"
    printf '[Service]\n%s\n' "$1" >"$SYSTEMD_UNITS/vmward@web1.service.d/scenario.conf"
    ctl daemon-reload
}
drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 1"'

promise "enable --now is all it takes" ctl enable --now vmward@web1
promise "then the guest runs" equal "$(guest_is state)" running
promise "its unit says so" equal "$(of StatusText)" runs
promise "QEMU runs as its own user" equal "$(systemd_run stat -c %U "/proc/$(guest_is qemu)")" vmward-qemu
filters() { systemd_run sed -n 's/^Seccomp_filters:[^0-9]*//p' "/proc/$1/status"; }
promise "and has a seccomp filter more than its supervisor" test "$(filters "$(guest_is qemu)")" -gt "$(filters "$(of MainPID)")"
# CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID and SETUID of those of the unit: there is no macvtap device to be removed.
promise "which has kept what this guest needs" \
    equal "$(systemd_run sed -n 's/^CapEff:.//p' "/proc/$(of MainPID)/status")" 00000000000000eb
promise "the journal has the guest's name" eval "journal -o json -u vmward@web1 | has '\"VMWARD_GUEST\":\"web1\"'"
promise "and which secret came from where" eval "journal -o json VMWARD_GUEST=web1 | grep '\"VMWARD_SECRET\":\"[0-9a-f-]\{36\}\"' |
    grep '\"VMWARD_SECRET_USAGE\":\"volume $image\"' | has '\"VMWARD_SECRET_STORE\":\"file:'"
value=$(systemd_run vmward secret get-value $image)
promise "and no value" eval 'journal -o json | lacks -F "$value"'
promise "a reload is one" ctl reload vmward@web1
promise "after which it runs" equal "$(of ActiveState) $(guest_is state)" "active running"
systemd_run vmward suspend web1
until_true 30 eval '[ "$(of StatusText)" = "is paused" ]'
promise "a paused guest is seen in its status" true
systemd_run vmward resume web1
supervisor=$(of MainPID) qemu=$(guest_is qemu)
promise "a restart is a new guest" ctl restart vmward@web1
promise "with another QEMU" not equal "$(guest_is qemu)" "$qemu"
promise "a stop ends it" ctl stop vmward@web1
promise "well" equal "$(of Result) $(of ExecMainStatus)" "success 0"
promise "and nothing of it is left" nothing_left

# The supervisor dies.
promise "it starts again" ctl start vmward@web1
for kind in file memory; do
    if [ $kind = memory ]; then
        ctl stop vmward@web1
        drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 1 --master-key memory"'
        promise "a guest whose key is in memory starts" ctl start vmward@web1
        promise "its key is in no file" systemd_run sh -c 'test ! -f /run/vmward/web1/master-key.aes && test -L /run/vmward/web1/master-key.aes'
        promise "systemd keeps it" equal "$(of NFileDescriptorStore)" 1
    fi
    supervisor=$(of MainPID) qemu=$(guest_is qemu)
    begin=$(date +%s%N)
    ctl kill --kill-whom=main --signal=KILL vmward@web1
    until_true 60 restarted "$supervisor"
    took=$((($(date +%s%N) - begin) / 1000000))
    promise "a supervisor that is killed is followed by another (key: $kind; $took ms)" true
    promise "which has the same QEMU ($kind)" equal "$(guest_is qemu)" "$qemu"
    promise "with the same key ($kind)" eval 'journal -u vmward@web1 | lacks "given a new one"'
    promise "and can plug in an encrypted disk ($kind)" systemd_run vmward attach-device web1 /run/hot.xml
    promise "and take it out, of a guest without a system after no answer ($kind)" \
        bash -c '[ $1 = 0 ] || [ $1 = 75 ]' - "$(systemd_run vmward detach-device web1 vdb --timeout 1 >/dev/null 2>&1; echo $?)"
    promise "and stop the guest ($kind)" ctl stop vmward@web1
    promise "of which nothing is left ($kind)" nothing_left
    [ $kind = memory ] || ctl start vmward@web1
done
promise "systemd keeps no key of a guest that ended" equal "$(of NFileDescriptorStore)" 0
drop_in 'FileDescriptorStoreMax=0
Environment="VMWARD_OPTIONS=--stop-timeout 1 --master-key memory"'
ctl start vmward@web1
supervisor=$(of MainPID) qemu=$(guest_is qemu)
ctl kill --kill-whom=main --signal=KILL vmward@web1
until_true 60 restarted "$supervisor"
promise "without a descriptor store QEMU is given another key, and it is said" \
    eval 'journal -u vmward@web1 | has "given a new one"'
promise "the guest goes on" equal "$(guest_is qemu) $(guest_is state)" "$qemu running"
promise "and disks are plugged in with it" systemd_run vmward attach-device web1 /run/hot.xml
ctl stop vmward@web1

# Times. A disk whose key takes longer than each of the unit's limits, and QEMU, which answers nobody meanwhile, derives it.
late=/var/lib/vmward/late.luks
systemd_run vmward secret generate --usage-volume $late >/dev/null
systemd_run sh -c "umask 077; vmward secret get-value $late >/run/late"
systemd_run qemu-img create -q -f luks --object secret,id=s,file=/run/late -o key-secret=s,iter-time=9000 $late 16M
systemd_run sh -c 'cat >/run/late.xml' < <(guest_xml web1 $late "usage='$late'" | sed -n '/<disk/,/<.disk>/s/vda/vdb/;/<disk/,/<.disk>/p')
drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 8 --unlock qemu"
TimeoutStartSec=3
TimeoutStopSec=3
WatchdogSec=4'
promise "a guest with a watchdog starts" ctl start vmward@web1
supervisor=$(of MainPID) qemu=$(guest_is qemu)
begin=$(date +%s%N)
promise "a disk whose key takes longer than the watchdog is plugged in" systemd_run vmward attach-device web1 /run/late.xml
took=$((($(date +%s%N) - begin) / 1000000))
promise "(it took $took ms, the watchdog waits for 4000)" test $took -gt 4000
promise "with the same supervisor and QEMU" equal "$(of MainPID) $(guest_is qemu)" "$supervisor $qemu"
begin=$SECONDS
promise "a stop takes as long as the guest may" ctl stop vmward@web1
promise "(8 s, the unit's own limit is 3)" test $((SECONDS - begin)) -ge 8
promise "and has gone well" equal "$(of Result)" success
systemd_run cp /etc/vmward/guests/web1.xml /run/web1.xml
guest_xml web1 $late "usage='$late'" | systemd_run sh -c 'cat >/etc/vmward/guests/web1.xml'
begin=$SECONDS
promise "a guest with such a disk starts" ctl start vmward@web1
promise "($((SECONDS - begin)) s, the unit's own limit is 3)" test $((SECONDS - begin)) -gt 3
ctl stop vmward@web1
systemd_run cp /run/web1.xml /etc/vmward/guests/web1.xml
promise "nothing of it is left" nothing_left

# A QEMU that hangs.
drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 1"
WatchdogSec=8'
ctl start vmward@web1
supervisor=$(of MainPID) qemu=$(guest_is qemu)
systemd_run kill -STOP "$qemu"
until_true 120 restarted "$supervisor"
promise "a QEMU that hangs is killed, and the guest starts anew" not equal "$(guest_is qemu)" "$qemu"
promise "by the watchdog" eval 'journal -u vmward@web1 | has -i watchdog'
sleep 12
promise "which leaves a guest alone that is well" equal "$(of NRestarts)" 1
ctl stop vmward@web1
promise "nothing of it is left" nothing_left

# What fails.
systemd_run sh -c 'printf "#!/bin/sh\nexit 75\n" >/usr/local/sbin/not-yet; chmod 755 /usr/local/sbin/not-yet'
drop_in 'Environment="VMWARD_OPTIONS=--keystore exec:/usr/local/sbin/not-yet --stop-timeout 1"'
refused "a guest whose keystore is not there yet does not start" 1 "" ctl start vmward@web1
# It is seen until the next try begins, and on a slow machine that is soon.
until_true 60 eval '[ "$(of ExecMainStatus)" = 75 ]'
promise "with code 75" true
until_true 60 eval '[ "$(of NRestarts)" -gt 0 ]'
promise "and is tried again" true
systemd_run sh -c "printf '#!/bin/sh\nprintf %s $value\n' >/usr/local/sbin/not-yet"
until_true 60 eval '[ "$(of ActiveState)" = active ]'
promise "until the keystore answers" equal "$(guest_is state)" running
ctl stop vmward@web1
systemd_run sh -c 'sed s/web1/bad/ /etc/vmward/guests/web1.xml | sed "s/<memory/<nonsense\/><memory/" >/etc/vmward/guests/bad.xml'
refused "bad XML is not tried again" 1 "" ctl start vmward@bad
promise "it has failed with code 65" equal "$(of ExecMainStatus vmward@bad) $(of NRestarts vmward@bad)" "65 0"
refused "nor a guest that is not there" 1 "" ctl start vmward@nobody
promise "it has failed with code 66" equal "$(of ExecMainStatus vmward@nobody) $(of NRestarts vmward@nobody)" "66 0"

# starts_with_drop_in WHAT PROGRAM: the guest web1 as it is now starts with the example of a drop-in for helpers, without
# which PROGRAM cannot do its work.
starts_with_drop_in() {
    drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 1"'
    refused "a guest with $1 does not start without its drop-in" 1 "" ctl start vmward@web1
    promise "and it is $2 that cannot" eval "journal -u vmward@web1 -n 20 | has $2"
    promise "nothing of it is left" nothing_left
    systemd_run cp /usr/local/share/doc/vmward/systemd/helpers.conf "/etc/systemd/system/vmward@web1.service.d/helpers.conf"
    ctl daemon-reload
    promise "with the example of one it does" ctl start vmward@web1
    promise "and runs" equal "$(guest_is state)" running
}

# What the sandbox has no room for by default, and a drop-in has.
for virtiofsd in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd "$TARGET/virtiofsd/bin/virtiofsd" ""; do
    [ -z "$virtiofsd" ] || [ ! -x "$virtiofsd" ] || break
done
chmod 755 "$WORK"
[ -z "$virtiofsd" ] || install -m 755 "$virtiofsd" "$WORK/virtiofsd"
if systemd_run "$WORK/virtiofsd" --version >/dev/null 2>&1; then
    systemd_run sh -c 'mkdir -p /srv/share; cat >/etc/vmward/guests/web1.xml' <<XML
<domain type='qemu'>
  <name>web1</name>
  <memory unit='MiB'>64</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <filesystem type='mount'>
      <driver type='virtiofs'/><binary path='/usr/local/sbin/virtiofsd'/>
      <source dir='/srv/share'/><target dir='share'/>
    </filesystem>
  </devices>
</domain>
XML
    systemd_run cp "$WORK/virtiofsd" /usr/local/sbin/virtiofsd
    starts_with_drop_in virtiofs virtiofsd
    ctl stop vmward@web1
    promise "nothing of it is left then either" nothing_left
    systemd_run rm "/etc/systemd/system/vmward@web1.service.d/helpers.conf"
    systemd_run cp /run/web1.xml /etc/vmward/guests/web1.xml
else
    echo "  skipped: virtiofs under a unit: there is no virtiofsd that runs there"
fi

# passt, which has to be let make namespaces as well. There is no network in here: a device and a route are enough for it.
if systemd_run passt --version >/dev/null 2>&1 && systemd_run ip link add outside type veth peer name beyond; then
    systemd_run sh -c 'ip address add 192.0.2.2/24 dev outside && ip link set beyond up && ip link set outside up && ip route add default via 192.0.2.1'
    systemd_run sh -c 'cat >/etc/vmward/guests/web1.xml' <<'XML'
<domain type='qemu'>
  <name>web1</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <interface type='user'><backend type='passt'/><model type='virtio'/></interface>
  </devices>
</domain>
XML
    starts_with_drop_in passt passt
    passt=$(systemd_run pgrep -f '^(\S*/)?passt(\.avx2)? ')
    promise "so does passt, as QEMU's user" equal "$(systemd_run stat -c %U "/proc/$passt")" vmward-qemu
    ctl stop vmward@web1
    promise "it ends with the guest" systemd_run sh -c '! test -e "$0"' "/proc/$passt"
    promise "of which nothing is left" nothing_left
    systemd_run rm "/etc/systemd/system/vmward@web1.service.d/helpers.conf"
    systemd_run cp /run/web1.xml /etc/vmward/guests/web1.xml
else
    echo "  skipped: passt under a unit: there is no passt, or no network device can be made"
fi

# What brings a value at boot, to where nothing else has it.
brought=/var/lib/vmward/brought.luks
systemd_run vmward secret generate --usage-volume $brought >/dev/null
systemd_run vmward volume create $brought --kdf fast --format raw --size 16M --secret $brought
systemd_run sh -euc "umask 077; vmward secret get-value $brought >/run/brought; vmward secret undefine $brought
    mkdir -p /etc/vmward/secrets.d
    cat >/etc/vmward/secrets.d/keyring; chmod 755 /etc/vmward/secrets.d/keyring" <<SH
#!/bin/sh -e
uuid=\$(vmward --keystore keyring: secret define - <<XML
<secret ephemeral='yes'><usage type='volume'><volume>$brought</volume></usage></secret>
XML
)
vmward --keystore keyring: secret set-value "\$uuid" --file /run/brought
SH
guest_xml web1 $brought "usage='$brought'" | systemd_run sh -c 'cat >/etc/vmward/guests/web1.xml'
drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 1 --keystore keyring:"'
refused "a guest whose secret nobody has brought does not start" 1 "" ctl start vmward@web1
promise "it has failed with code 66" equal "$(of ExecMainStatus)" 66
promise "a program that brings it is enabled" ctl enable vmward-secrets@keyring
promise "and started before guests are" ctl start vmward-secrets.target
promise "with success" equal "$(of ActiveState vmward-secrets@keyring) $(of Result vmward-secrets@keyring)" "active success"
promise "then the guest starts" ctl start vmward@web1
promise "and has its disk" equal "$(guest_is state)" running
ctl stop vmward@web1
systemd_run vmward --keystore keyring: secret undefine $brought
systemd_run cp /run/web1.xml /etc/vmward/guests/web1.xml

# What a lost machine left.
drop_in 'Environment="VMWARD_OPTIONS=--stop-timeout 1"'
ctl start vmward@web1
supervisor=$(of MainPID) qemu=$(guest_is qemu)
systemd_run mkdir -m 700 /run/vmward/lost
systemd_run sh -c 'head -c 32 /dev/urandom >/run/vmward/lost/master-key.aes'
promise "doctor finds what a lost guest has left" bash -c "grep -q 'a supervisor died and left /run/vmward/lost'" <<<"$(systemd_run vmward doctor)"
promise "doctor --fix wipes it" bash -c "grep -q '/run/vmward/lost was wiped'" <<<"$(systemd_run vmward doctor --fix)"
promise "and leaves alone what runs" equal "$(guest_is qemu) $(systemd_run ls /run/vmward)" "$qemu web1"
systemd_run mkdir -m 700 /run/vmward/lost
systemd_run sh -c 'head -c 32 /dev/urandom >/run/vmward/lost/master-key.aes'
ctl stop vmward@web1
promise "so does the end of any unit" nothing_left
done_well
