#!/bin/bash
# The third way of using secrets: somebody gives the passphrase by hand, for as long as it takes to start the guest.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
packages_install "$PACKAGES_TEST"

echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
image=$WORK/web1.luks
uuid=$(cat /proc/sys/kernel/random/uuid)
passphrase="correct horse $uuid"
tidy_more() { "$vmward" secret undefine "$uuid" 2>/dev/null; }
cat >"$WORK/secret.xml" <<XML
<secret ephemeral='yes' private='yes'>
  <uuid>$uuid</uuid>
  <usage type='volume'><volume>$image</volume></usage>
</secret>
XML
"$vmward" secret define "$WORK/secret.xml" || skip "there is no kernel keyring here"
given() { printf '%s\n' "$passphrase" | "$vmward" secret set-value --strip-newline "$uuid"; }
promise "a passphrase is given" given
refused "nobody is shown it again" 77 'never shown' "$vmward" secret get-value "$uuid"
promise "a volume is made with it" "$vmward" volume create "$image" --format raw --size 8M --kdf fast --secret "$image"
guest_xml web1 "$image" "usage='$image'" >"$WORK/web1.xml"
guest_start web1 "$WORK/web1.xml"
promise "the guest runs, and the passphrase is forgotten" "$vmward" secret undefine "$uuid"
promise "the guest runs on" eval '"$vmward" status web1 | has "^State *running"'
if [ "$(id -u)" = 0 ]; then
    refused "the search that follows finds it where it is: in this shell" 1 "^process $$ has [1-9]" eval \
        'printf %s "$passphrase" | hex | python3 "$REPO/integration/lib/memory.py" $$'
    promise "its supervisor does not have the passphrase any more" eval \
        'printf %s "$passphrase" | hex | python3 "$REPO/integration/lib/memory.py" "$GUEST_PID"'
fi
promise "it is in no file" eval \
    'printf %s "$passphrase" | hex | perl "$REPO/integration/lib/scan.pl" $(find "$WORK" "$VMWARD_RUNTIME_DIR" -type f)'
promise "nor in arguments or environments" eval \
    'printf %s "$passphrase" | hex | perl "$REPO/integration/lib/scan.pl" /proc/[0-9]*/cmdline /proc/[0-9]*/environ'
promise "it ends" guest_end web1
refused "and does not start again by itself" 66 "usage '$image'" "$vmward" run "$WORK/web1.xml"
promise "but when it is given again" eval '"$vmward" secret define "$WORK/secret.xml" && given'
promise "it does" guest_runs web1 "$WORK/web1.xml"
promise "no keystore was made on the way" not test -e "$WORK/config/keystore.key"
done_well
