#!/bin/bash
# Who can do what with a keystore that several users share: an officer lists and deletes secrets, a creator makes
# volumes, a guest's supervisor reads its own. Each is a user of his own, and root is needed once, to set it up.
. "$(dirname "$0")/../lib/scenario.sh"
. "$REPO/integration/lib/guest-run.sh"
. "$REPO/integration/lib/guest-hold.sh"
packages_install "$PACKAGES_TEST
age age
age-keygen age"
[ "$(id -u)" = 0 ] || skip "only root is several users"

# Users and groups without accounts; numbers do wherever a name does.
officer=61101 creator=61102 web1=61103 web2=61104 creators=61110 images=61111
# For everybody: not everybody may look into the directory of a build.
chmod 711 "$WORK" "$VMWARD_RUNTIME_DIR"
install -D "$vmward" "$WORK/bin/vmward"
vmward=$WORK/bin/vmward
store=$WORK/secrets
runtime=$VMWARD_RUNTIME_DIR

# home UID: a directory of that user's own, with his configuration and a runtime directory.
home() {
    mkdir "$WORK/$1" "$runtime/$1"
    echo "keystore = \"file:$store?owner=$officer&group=$creators\"" >"$WORK/$1/vmward.toml"
    chown "$1:$1" "$WORK/$1" "$runtime/$1"
}
# as UID[:GROUP...] COMMAND...: runs a command as that user.
as() {
    local who=$1 uid=${1%%:*} groups=--clear-groups
    [ "$uid" = "$who" ] || groups=--groups=$(tr : , <<<"${who#*:}")
    shift
    setpriv --reuid="$uid" --regid="$uid" "$groups" env -i PATH="$PATH" HOME="$WORK/$uid" \
        VMWARD_CONFIG="$WORK/$uid/vmward.toml" VMWARD_RUNTIME_DIR="$runtime/$uid" "$@"
}
officer() { as $officer:$creators "$vmward" "$@"; }
creator() { as $creator:$creators:$images "$vmward" "$@"; }
web1() { as $web1:$images "$vmward" "$@"; }
web2() { as $web2:$images "$vmward" "$@"; }

# A guest that a broken promise leaves.
tidy_more() { web1 destroy web1 2>/dev/null; }

# What root sets up, as docs/keystores/roles.md says.
install -d -o $officer -g $creators -m 3775 "$store"
age-keygen -o "$WORK/recovery.key" 2>/dev/null
age-keygen -y "$WORK/recovery.key" >"$store/recipients.txt"
for uid in $officer $creator $web1 $web2; do
    home $uid
done
for uid in $web1 $web2; do
    as $uid age-keygen -o "$WORK/$uid/keystore.key" 2>/dev/null
    age-keygen -y "$WORK/$uid/keystore.key" >"$WORK/$uid.pub"
done
install -d -g $images -m 2770 "$WORK/images"

# The creator: a volume for each guest, each with a new secret for that guest's key.
image=$WORK/images/web1.luks
made() {
    volume_xml "$WORK/images/$1.luks" "<secret type='passphrase'/>" |
        sed "s#<format#<permissions><mode>0660</mode><group>$images</group></permissions><format#" >"$WORK/$1-volume.xml"
    creator volume create --volume-xml "$WORK/$1-volume.xml" --recipients-file "$WORK/$2.pub"
}
promise "a creator makes a volume with a new secret" made web1 $web1
promise "and another one" made web2 $web2
uuid=$(officer secret dumpxml "$image" | sed -n 's#.*<uuid>\(.*\)</uuid>.*#\1#p')
other=$(officer secret dumpxml "$WORK/images/web2.luks" | sed -n 's#.*<uuid>\(.*\)</uuid>.*#\1#p')
refused "he cannot read its value" 77 'no key to decrypt' creator secret get-value "$uuid"
refused "nor make a volume that somebody else has the passphrase of" 77 'no key to decrypt' \
    creator volume create "$WORK/images/x.luks" --format raw --size 8M --secret "$uuid"
promise "a secret of his can be given a value by him" \
    eval 'creator secret generate --usage-ceph client.web1 && printf "a ceph key" | creator secret set-value client.web1'
made_by_officer=$(officer secret generate --usage-tls web)
refused "a secret of another one cannot" 77 "belongs to the user $officer" \
    eval 'printf x | creator secret set-value "$made_by_officer"'
refused "nor can it be removed" 77 "belongs to the user $officer" creator secret undefine "$made_by_officer"
refused "nor by hand" 1 'cannot remove' as $creator:$creators rm -f "$store/$made_by_officer.age"
refused "a volume's secret is not made twice" 65 'taken' creator secret generate --usage-volume "$image"

# The guest's supervisor.
guest_xml web1 "$image" "uuid='$uuid'" >"$WORK/web1.xml"
guest_xml web2 "$image" "uuid='$uuid'" >"$WORK/web2.xml"
guest_start web1 "$WORK/web1.xml" as $web1:$images
promise "a guest's own user starts it" eval 'web1 status web1 | has "^State *running"'
processes=$(web1 status --json web1 | sed 's/.*"supervisor":\([0-9]*\),"qemu":\([0-9]*\).*/\1 \2/')
promise "its supervisor and its QEMU are that user's" \
    equal "$(for pid in $processes; do stat -c %u "/proc/$pid/task"; done | tr '\n' ' ')" "$web1 $web1 "
promise "it ends" guest_end web1 as $web1:$images
refused "another guest's user has no key to that disk" 77 'another key' web2 run "$WORK/web2.xml"
refused "nor to others of the store" 77 'another key' web1 secret get-value "$other"
refused "and adds nothing to it" 77 'Permission denied' web1 secret generate
refused "nor removes anything" 77 "belongs to the user $creator" web1 secret undefine "$uuid"

# The officer.
promise "the officer sees all secrets, and what uses them" eval \
    'officer secret list --guest "$WORK/web1.xml" | tee "$WORK/list" | has "$uuid.*web1" && grep -q "$other" "$WORK/list"'
refused "and reads none" 77 'no key to decrypt' officer secret get-value "$uuid"
refused "nor gives a value to readers whom a creator chose" 77 'chose the keys' \
    eval 'printf x | officer secret set-value "$uuid"'
promise "he removes them" officer secret undefine "$other"
refused "and they are gone" 66 'no secret' officer secret dumpxml "$other"
as $officer age-keygen -o "$WORK/$officer/keystore.key" 2>/dev/null
as $officer sh -c "mv '$store/recipients.txt' '$store/away'; age-keygen -y '$WORK/$officer/keystore.key' >'$store/recipients.txt'"
refused "a key of his own is not taken for the store's" 77 'not to root' creator secret generate
as $officer mv -f "$store/away" "$store/recipients.txt"
refused "and opens nothing" 77 'another key' officer secret get-value "$uuid"

# And who keeps the recovery key.
promise "the recovery key opens every secret, without vmward as well" \
    equal "$(age -d -i "$WORK/recovery.key" "$store/$uuid.age")" "$(web1 secret get-value "$uuid")"
promise "the doctor finds nothing wrong with the store" eval 'web1 doctor | grep "secrets?owner" | lacks -v "^ok"'
done_well
