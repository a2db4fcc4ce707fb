#!/bin/bash
# The first way of using secrets: a volume's description names none, so one is made and kept in the local keystore.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
packages_install "$PACKAGES_TEST"

echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
image=$WORK/web1.luks
volume_xml "$image" "<secret type='passphrase'/>" >"$WORK/volume.xml"
promise "a volume is made whose XML names no secret" "$vmward" volume create --volume-xml "$WORK/volume.xml"
cp "$WORK/said" "$WORK/filled.xml"
uuid=$("$vmward" secret list --json --volume "$image" | sed -n "s/.*\"uuid\": \"\(.*\)\",/\1/p")
promise "the XML that is printed names the new secret" grep -q "<secret type='passphrase' uuid='$uuid'/>" "$WORK/filled.xml"
promise "which is all that was added" \
    equal "$(sed "s/ uuid='$uuid'//" "$WORK/filled.xml" | tr -d ' \n')" "$(tr -d ' \n' <"$WORK/volume.xml")"
promise "its value is nowhere but in the keystore" eval \
    '"$vmward" secret get-value "$uuid" | hex | perl "$REPO/integration/lib/scan.pl" $(find "$WORK" -type f)'
promise "the volume leads to its secret" eval '"$vmward" volume info "$image" | has "$uuid"'
guest_xml web1 "$image" "uuid='$uuid'" >"$WORK/web1.xml"
guest_start web1 "$WORK/web1.xml"
promise "a guest runs with it, and the secret is known to be used by both" eval \
    '"$vmward" secret list | has "$uuid.*web1 (running), the volume"'
promise "it ends" guest_end web1
promise "what was printed describes the volume again" "$vmward" volume create --force --volume-xml "$WORK/filled.xml"
promise "no second secret was made" equal "$(find "$WORK/config/secrets" -name '*.xml' | wc -l)" 1
promise "volume and secret go together" "$vmward" volume delete --secret --yes "$image"
promise "and leave nothing" says_nothing find "$WORK/config/secrets" -name "$uuid*"
done_well
