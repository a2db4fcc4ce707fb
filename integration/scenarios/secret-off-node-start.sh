#!/bin/bash
# The fourth way of using secrets: the value is in a key server, this host knows where; a guest is started with it, and
# the host forgets it at once.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
. "$REPO/integration/lib/openbao.sh"
packages_install "$PACKAGES_TEST"
openbao_start

# The definition, with the UUID that the guest's XML names, is local. Its value never is.
echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
image=$WORK/web1.luks
uuid=$(cat /proc/sys/kernel/random/uuid)
passphrase=$(openssl rand -base64 32)
printf %s "$passphrase" | "$BAO" kv put -mount=secret guests/web1 passphrase=- >/dev/null
uri=$(openbao_uri guests/web1)#passphrase
cat >"$WORK/secret.xml" <<XML
<secret private='yes'>
  <uuid>$uuid</uuid>
  <value uri='${uri//&/&amp;}'/>
</secret>
XML
promise "a secret says where its value is" "$vmward" secret define "$WORK/secret.xml"
promise "a volume is made with what another program put there" \
    "$vmward" volume create "$image" --format raw --size 8M --kdf fast --secret "$uuid"
guest_xml web1 "$image" "uuid='$uuid'" >"$WORK/web1.xml"
guest_start web1 "$WORK/web1.xml"
nowhere() { printf %s "$passphrase" | hex | "$@"; }
if [ "$(id -u)" = 0 ]; then
    refused "the search that follows finds the value where it is: in this shell" 1 "^process $$ has [1-9]" \
        nowhere python3 "$REPO/integration/lib/memory.py" $$
    promise "the supervisor of the guest that runs does not have it any more" \
        nowhere python3 "$REPO/integration/lib/memory.py" "$GUEST_PID"
fi
mapfile -t files < <(find "$WORK" "$VMWARD_RUNTIME_DIR" -type f)
promise "it is in no file of this host" nowhere perl "$REPO/integration/lib/scan.pl" "${files[@]}"
promise "nor in arguments or environments" \
    nowhere perl "$REPO/integration/lib/scan.pl" /proc/[0-9]*/cmdline /proc/[0-9]*/environ
promise "the definition is forgotten as well" "$vmward" secret undefine "$uuid"
promise "the value is not ours to remove: it is still there" \
    equal "$("$BAO" kv get -mount=secret -field=passphrase guests/web1)" "$passphrase"
"$vmward" secret define "$WORK/secret.xml" >/dev/null
kill "$BAO_PID"
ends_within 10 "$BAO_PID"
promise "the guest runs on without the key server" eval '"$vmward" status web1 | has "^State *running"'
promise "it ends" guest_end web1
refused "and does not start as long as there is no key server" 75 'cannot be reached' "$vmward" run "$WORK/web1.xml"
done_well
