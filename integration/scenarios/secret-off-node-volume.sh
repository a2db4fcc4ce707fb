#!/bin/bash
# The fifth way of using secrets: a volume is made with a new secret that is kept in a key server from the start.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
. "$REPO/integration/lib/openbao.sh"
packages_install "$PACKAGES_TEST"
openbao_start

echo "keystore = \"$BAO_KEYSTORE\"" >"$VMWARD_CONFIG"
image=$WORK/web1.luks
volume_xml "$image" "<secret type='passphrase'/>" >"$WORK/volume.xml"
promise "a volume is made" "$vmward" volume create --volume-xml "$WORK/volume.xml"
uuid=$(sed -n "s/.*<secret type='passphrase' uuid='\(.*\)'\/>.*/\1/p" "$WORK/said")
promise "the server has its secret" eval '"$BAO" kv list -mount=secret vmward | grep .'
passphrase=$("$vmward" secret get-value "$uuid")
opens() {
    qemu-img info --object secret,id=s,file=/dev/fd/3 --image-opts "driver=luks,key-secret=s,file.filename=$image" \
        3< <(printf %s "$passphrase")
}
promise "its value opens the volume" opens
nowhere() { printf %s "$passphrase" | hex | perl "$REPO/integration/lib/scan.pl" "$@"; }
mapfile -t files < <(find "$WORK" "$VMWARD_RUNTIME_DIR" -type f)
promise "the value is in no file of this host" nowhere "${files[@]}"
promise "no local keystore was made" not test -e "$WORK/config/keystore.key"

# Another host, with the same server: all that it has is the image and the XML that was printed.
mkdir "$WORK/other"
cp "$VMWARD_CONFIG" "$WORK/other/vmward.toml"
guest_xml web1 "$image" "uuid='$uuid'" >"$WORK/web1.xml"
promise "a guest starts with it on another host" env VMWARD_CONFIG="$WORK/other/vmward.toml" bash -c \
    ". '$REPO/integration/lib/common.sh'; $(declare -f guest_runs guest_plugs ends_within); vmward=$vmward; WORK=$WORK; SERVERS=(); guest_runs web1 '$WORK/web1.xml'"
promise "the volume's path leads to it, too" eval '"$vmward" secret list --volume "$image" | has "$uuid"'
promise "volume and secret go together" "$vmward" volume delete --secret --yes "$image"
refused "and the server has neither" 66 'no secret' "$vmward" secret get-value "$uuid"

kill "$BAO_PID"
ends_within 10 "$BAO_PID"
refused "without the server no volume is made" 75 'cannot be reached' "$vmward" volume create --volume-xml "$WORK/volume.xml"
promise "and none is left half made" not test -e "$image"
done_well
