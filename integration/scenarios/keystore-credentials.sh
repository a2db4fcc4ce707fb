#!/bin/bash
# Secrets that systemd hands to a service, from files and encrypted with the host's key.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/systemd.sh"
. "$REPO/integration/lib/guest-run.sh"
packages_install "$PACKAGES_TEST"
if why=$(systemd_impossible); then
    skip "$why"
fi
tidy_more() { systemd_down; }
systemd_up
promise "a systemd runs as PID 1" equal "$(systemd_run cat /proc/1/comm)" systemd

# unit NAME LINES COMMAND...: a service that runs vmward with what systemd gives it, and nothing configured.
unit() {
    local name=$1 lines=$2
    shift 2
    cat >"$SYSTEMD_UNITS/$name.service" <<UNIT
[Unit]
StartLimitIntervalSec=0
[Service]
$lines
Environment=VMWARD_CONFIG=/nowhere/vmward.toml
ExecStart=/usr/local/bin/vmward --keystore credentials: $*
StandardOutput=file:$WORK/$name.out
StandardError=file:$WORK/$name.err
UNIT
    : >"$WORK/$name.out"
    : >"$WORK/$name.err"
    systemd_run systemctl daemon-reload
}

# in_service LINES COMMAND...: runs vmward in a service; what it prints and how it ends is that of the service.
in_service() {
    unit ask "Type=oneshot
$1" "${@:2}"
    systemd_run systemctl start ask.service 2>/dev/null || true
    cat "$WORK/ask.out"
    cat "$WORK/ask.err" >&2
    return "$(systemd_run systemctl show --property=ExecMainStatus --value ask.service)"
}

web1=11111111-2222-4333-8444-555555555555
# The volumes have names that are nobody's in systemd: what has a / and a - in it takes no escaping in a unit.
volume2=/images/web-2.luks name2=volume.+images+web-2.luks
mkdir -m 700 "$WORK/given"
printf 'from a file of root' >"$WORK/given/$web1"
printf 'sealed to the host' >"$WORK/given/$name2"
# As systemd-creds would be used on the host; its key is in the overlay.
systemd_run systemd-creds encrypt --with-key=host --name="$name2" "$WORK/given/$name2" "$WORK/sealed" 2>/dev/null
promise "systemd has encrypted the second" absent -qaF 'sealed to the host' "$WORK/sealed"
plain="LoadCredential=$web1:$WORK/given/$web1" sealed="LoadCredentialEncrypted=$name2:$WORK/sealed"

promise "a service reads what LoadCredential= gave it" \
    equal "$(in_service "$plain" secret get-value $web1)" "from a file of root"
promise "and LoadCredentialEncrypted=" equal "$(in_service "$sealed" secret get-value $volume2)" "sealed to the host"
promise "and SetCredential=" \
    equal "$(in_service "SetCredential=ceph.client.admin=20secret:in the unit" secret get-value '"client.admin secret"')" "in the unit"
inline=$(systemd_run systemd-creds encrypt --with-key=host --name="$name2" --pretty "$WORK/given/$name2" - 2>/dev/null)
promise "and SetCredentialEncrypted=" equal "$(in_service "$inline" secret get-value $volume2)" "sealed to the host"
promise "a service of another user reads its own" \
    equal "$(in_service "User=nobody
$plain" secret get-value $web1)" "from a file of root"
refused "and not what another service was given" 66 "no secret with usage '$volume2'" in_service "$plain" secret get-value $volume2
promise "they are listed, with what else systemd gave left out" bash -c "grep -q '^$web1 .* yes ' '$WORK/list' &&
    grep -q ' volume $volume2 .* yes ' '$WORK/list' && [ \$(wc -l <'$WORK/list') = 3 ]" \
    "$(in_service "$plain
$sealed
SetCredential=something.else:x" secret list >"$WORK/list")"
refused "nothing is written there" 78 "no configured keystore keeps secrets" in_service "$plain" secret generate
refused "no value is set there" 69 "cannot set a value: it can only be read" \
    in_service "$plain" secret set-value $web1 --file /etc/hostname --strip-newline
refused "outside of a service there is none" 66 "no secret with UUID" "$vmward" --keystore credentials: secret get-value $web1

# A guest with both.
for secret in "$web1 $WORK/web1.luks" "$volume2 $WORK/web2.luks"; do
    CREDENTIALS_DIRECTORY=$WORK/given "$vmward" --keystore credentials: volume create "${secret#* }" --kdf fast --format raw --size 16M \
        --secret "${secret% *}"
done
guest_xml web1 "$WORK/web1.luks" "uuid='$web1'" >"$WORK/one.xml"
second=$(guest_xml web1 "$WORK/web2.luks" "usage='$volume2'" | sed -n '/<disk/,/<.disk>/s/vda/vdb/;/<disk/,/<.disk>/p')
awk -v second="$second" '{ print } /<\/disk>/ { print second }' "$WORK/one.xml" >"$WORK/guest.xml"
unit guest "Type=notify
$plain
$sealed" run --user root --stop-timeout 1 "$WORK/guest.xml"
promise "a guest's unit starts" systemd_run systemctl start guest.service
promise "and is active" equal "$(systemd_run systemctl is-active guest.service)" active
promise "and the guest runs" bash -c "grep -q running" <<<"$(systemd_run vmward list)"
pid=$(systemd_run systemctl show --property=MainPID --value guest.service)
# A process may end meanwhile.
systemd_run sh -c "cat /proc/$pid/environ && { cat /proc/[0-9]*/cmdline || true; }" >"$WORK/seen"
promise "neither value is in the arguments and the environment of the supervisor and QEMU" \
    absent -aE 'from a file of root|sealed to the host' "$WORK/seen"
promise "it stops" systemd_run systemctl stop guest.service
promise "well" equal "$(systemd_run systemctl show --property=Result --value guest.service)" success
promise "and nothing of it is left" nothing_left
unit guest "Type=notify
$plain" run --user root "$WORK/guest.xml"
refused "without one of its credentials the unit fails" 1 "" systemd_run systemctl start guest.service
promise "and says which" grep -q "no volume secret with usage '$volume2' is defined" "$WORK/guest.err"
promise "at its line" grep -qE -- "--> $WORK/guest.xml:[0-9]+" "$WORK/guest.err"
cp "$WORK/sealed" "$WORK/wrong"
printf x | dd of="$WORK/wrong" bs=1 seek=100 conv=notrunc 2>/dev/null
unit guest "Type=notify
$plain
LoadCredentialEncrypted=$name2:$WORK/wrong" run --user root "$WORK/guest.xml"
refused "with one that was changed, systemd does not start it" 1 "" systemd_run systemctl start guest.service
promise "at its step CREDENTIALS" equal "$(systemd_run systemctl show --property=ExecMainStatus --value guest.service)" 243

# Values that open no disk.
for bad in 'nul:a\0b:is no passphrase' 'bytes:\377\376:is no passphrase' 'empty::the value is empty'; do
    IFS=: read -r name value said <<<"$bad"
    printf "$value" >"$WORK/bad"
    refused "a value of the kind '$name' starts no guest" 65 "$said" \
        in_service "LoadCredential=$web1:$WORK/bad
$sealed" run --user root "$WORK/guest.xml"
done
head -c 1048577 /dev/zero >"$WORK/given/$web1"
refused "nor one of more than 1 MiB" 65 "the value is longer than 1048576 bytes" \
    env CREDENTIALS_DIRECTORY="$WORK/given" "$vmward" --keystore credentials: run "$WORK/one.xml"

# A value by its URI: a credential of any name.
cat >"$WORK/secret.xml" <<XML
<secret><uuid>99999999-2222-4333-8444-555555555555</uuid><value uri='credentials:any name'/></secret>
XML
echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
"$vmward" secret define "$WORK/secret.xml" >/dev/null
printf 'by URI' >"$WORK/given/any name"
promise "a secret's definition can name a credential" \
    equal "$(CREDENTIALS_DIRECTORY=$WORK/given "$vmward" secret get-value 99999999-2222-4333-8444-555555555555)" "by URI"
rm "$WORK/given/any name"
refused "one that was not given" 66 "has no value at credentials:any name" \
    env CREDENTIALS_DIRECTORY="$WORK/given" "$vmward" secret get-value 99999999-2222-4333-8444-555555555555
refused "and one outside of a service" 66 'CREDENTIALS_DIRECTORY is not set' \
    "$vmward" secret get-value 99999999-2222-4333-8444-555555555555
done_well
