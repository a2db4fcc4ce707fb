#!/bin/bash
# The second way of using secrets: a secret is made with the volume, its value is fetched once and kept elsewhere, and
# this host forgets it: nothing of it ever was on its disk.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
packages_install "$PACKAGES_TEST"

echo 'keystore = "keyring:"' >"$VMWARD_CONFIG"
image=$WORK/web1.luks uuid=
# The kernel's keyring is one for all of this user's programs.
tidy_more() { [ -z "$uuid" ] || "$vmward" secret undefine "$uuid" 2>/dev/null; }
volume_xml "$image" "<secret type='passphrase'/>" >"$WORK/volume.xml"
refused "without a local keystore no secret is made that is to last" 78 'beyond the next boot' \
    "$vmward" volume create --volume-xml "$WORK/volume.xml"
"$vmward" volume create --ephemeral --volume-xml "$WORK/volume.xml" >"$WORK/filled.xml" ||
    skip "there is no kernel keyring here"
uuid=$(sed -n "s/.*<secret type='passphrase' uuid='\(.*\)'\/>.*/\1/p" "$WORK/filled.xml")
# The other host of this scenario is a variable.
elsewhere=$("$vmward" secret get-value "$uuid")
promise "the value was fetched" equal "${#elsewhere}" 44
promise "the host forgets it" "$vmward" secret undefine "$uuid"
guest_xml web1 "$image" "uuid='$uuid'" >"$WORK/web1.xml"
refused "and cannot start the guest" 66 "no volume secret with UUID $uuid" "$vmward" run "$WORK/web1.xml"
promise "neither the value nor a key to it is in any file" eval \
    'printf %s "$elsewhere" | hex | perl "$REPO/integration/lib/scan.pl" $(find "$WORK" "$VMWARD_RUNTIME_DIR" -type f)'
promise "no keystore was made" not test -e "$WORK/config/keystore.key"

echo "<secret ephemeral='yes'><uuid>$uuid</uuid></secret>" >"$WORK/secret.xml"
promise "the secret is brought back" eval \
    '"$vmward" secret define "$WORK/secret.xml" && printf %s "$elsewhere" | "$vmward" secret set-value "$uuid"'
promise "and opens the volume" guest_runs web1 "$WORK/web1.xml"
done_well
